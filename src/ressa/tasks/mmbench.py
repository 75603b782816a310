"""MMBench (Liu et al. 2023): multiple choice, its pictures in base64 in one TSV. github.com/open-compass/MMBench"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ressa.data.embedded import ImageText
from ressa.data.fields import identifier, need
from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.data.tables import is_table
from ressa.errors import RessaError, shown
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import find, picture, rows, tsv
from ressa.tasks.metrics.basic import each
from ressa.tasks.metrics.intervals import Measured

COLUMNS = ("index", "question", "A", "B", "answer", "image")
LETTERS = "ABCD"
ROTATED = 1_000_000  # the index of a question with rotated options is the original's plus a multiple of this
NO_ANSWER = "no answer in the file (the test split keeps its answers on the server)"


def read(source: Source) -> Reading:
    if is_table(source.data):
        return _reading([_sample(raw, where, picture(raw, where)) for raw, where in rows(source, COLUMNS)])
    path = find(source, f"mmbench_{source.split}*.tsv", f"*{source.split.upper()}*.tsv", f"*{source.split}*.tsv")
    read = list(tsv(path, COLUMNS))
    cells = {raw["index"]: raw["image"] for raw, _ in read}
    return _reading([_sample(raw, where, _picture(raw, where, cells)) for raw, where in read])


def _picture(raw: Mapping[str, Any], where: str, cells: Mapping[str, str]) -> ImageText:
    cell = need(raw, "image", str, where)
    return ImageText(cells.get(cell, cell), where)  # a cell may name the row that has the picture


def _reading(samples: list[Sample | None]) -> Reading:
    kept = [sample for sample in samples if sample]
    return Reading(kept, {NO_ANSWER: len(samples) - len(kept)} if len(kept) < len(samples) else {})


def _sample(raw: Mapping[str, Any], where: str, image: Picture) -> Sample | None:
    index, answer = identifier(raw, "index", where), str(raw.get("answer") or "").strip()
    if answer in ("", "nan"):
        return None
    choices = tuple(str(raw[c]).strip() for c in LETTERS if str(raw.get(c) or "nan").strip() not in ("", "nan"))
    if answer not in LETTERS[: len(choices)]:
        raise RessaError(f'{where}: field "answer" must be one of {LETTERS[: len(choices)]}, not {shown(answer)}')
    if not index.isdigit():
        raise RessaError(f'{where}: field "index" must be a number, not {shown(index)}')
    right, hint = LETTERS.index(answer), str(raw.get("hint") or "").strip()
    names = {"category": raw.get("category"), "group of categories": raw.get("l2-category") or raw.get("L2-category")}
    kinds = {name: str(value) for name, value in names.items() if value}
    question = need(raw, "question", str, where)
    record = Record(index, question, (choices[right],), kind=kinds.get("category"), image=image)
    group = str(int(index) % ROTATED)
    return Sample(record, kinds, choices, right, "" if hint == "nan" else hint, group)


def measure(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    """CircularEval: a question counts if it is right with its options in every order that the file has."""
    groups: dict[str, bool] = {}
    for sample, answer in zip(samples, answers, strict=True):
        groups[sample.group] = groups.get(sample.group, True) and common.is_right(sample, answer)
    circular = each([float(right) for right in groups.values()], of=list(groups))
    return {"circular_accuracy": circular, **common.chosen(samples, answers)}


TASK = Task(
    name="mmbench",
    title="MMBench",
    files="`mmbench_dev_*.tsv`",
    hub="lmms-lab/MMBench_EN",
    split="dev",
    read=read,
    measure=measure,
    metrics="accuracy, circular over rotated options and of single rows; by category",
    asks=common.CHOOSE,
    mode="choice",
)
