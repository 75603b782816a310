"""MMMU (Yue et al. 2024): college questions in thirty subjects. huggingface.co/datasets/MMMU/MMMU

Questions with several pictures are left out and counted: a record has one.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ressa.data.embedded import ImageCell
from ressa.data.fields import identifier, need
from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.data.tables import is_table
from ressa.errors import RessaError, shown
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import picture, rows
from ressa.tasks.metrics.basic import each
from ressa.tasks.metrics.intervals import Measured
from ressa.tasks.metrics.mmmu import is_right

COLUMNS = ("id", "question", "options", "answer", "question_type", "image_1")
SEVERAL = "several pictures"


def read(source: Source) -> Reading:
    left: Counter[str] = Counter()
    samples = []
    if not is_table(source.data):
        raise RessaError(f"{source.data}: no *.parquet there; MMMU is read from a hub dataset or its parquet files")
    for raw, where in rows(source, COLUMNS):
        seen = [column for column, value in raw.items() if isinstance(value, ImageCell)]
        if len(seen) > 1:
            left[SEVERAL] += 1
        else:
            samples.append(_sample(raw, where, picture(raw, where, *(seen or ["image_1"]))))
    return Reading(samples, dict(left))


def _sample(raw: Mapping[str, Any], where: str, image: Picture) -> Sample:
    key, question = identifier(raw, "id", where), _bare(need(raw, "question", str, where))
    subject = re.sub(r"^[a-z]+_|_\d+$", "", key)  # validation_Art_Theory_7
    kinds = {"subject": subject, "question type": need(raw, "question_type", str, where)}
    if kinds["question type"] != "multiple-choice":
        answers = tuple(str(a) for a in _list(raw, "answer", where, alone=True))
        return Sample(Record(key, question, answers, kind=subject, image=image), kinds)
    choices = tuple(_bare(str(option)) for option in _list(raw, "options", where))
    right = ord(need(raw, "answer", str, where)[0]) - ord("A")
    if not 0 <= right < len(choices):
        raise RessaError(f'{where}: field "answer" must be the letter of one of {len(choices)} options')
    record = Record(key, question, (choices[right],), kind=subject, image=image)
    return Sample(record, kinds, choices, right)


def _list(raw: Mapping[str, Any], key: str, where: str, alone: bool = False) -> list[Any]:
    """A list written as Python writes it; with `alone` a text that is no list stands for itself."""
    text = str(raw[key])
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        found = None
    if isinstance(found, list) and found:
        return found
    if alone and text.strip():
        return [text]
    raise RessaError(f'{where}: field "{key}" must be a list of options, not {shown(text)}')


def _bare(text: str) -> str:
    """Without the marks where pictures stand: a family's prompt puts the picture in its own place."""
    return " ".join(re.sub(r"<image \d+>", "", text).split()) or "the picture"


def measure(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    right = [
        common.is_right(sample, answer) if sample.choices else is_right(answer, sample.record.answers)
        for sample, answer in zip(samples, answers, strict=True)
    ]
    return {"accuracy": each([float(r) for r in right])}


TASK = Task(
    name="mmmu",
    title="MMMU",
    files="`SUBJECT/validation-*.parquet` as on the hub",
    hub="MMMU/MMMU",
    split="validation",
    read=read,
    measure=measure,
    metrics="accuracy, by subject and question type; questions with one picture",
    asks=common.CHOOSE,
    mode="choice",
)
