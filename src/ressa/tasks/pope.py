"""POPE (Li et al. 2023): is a thing there, yes or no, asked of COCO pictures. github.com/AoiDragon/POPE"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ressa.data.fields import identifier, need
from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.data.stream import Row, json_lines
from ressa.data.tables import is_table
from ressa.errors import RessaError
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, folder, from_table
from ressa.tasks.metrics.basic import says_no, yes_or_no
from ressa.tasks.metrics.intervals import Measured

DRAWN = ("random", "popular", "adversarial")  # how the things that are not there were chosen


def read(source: Source) -> Reading:
    """coco_pope_random.json, ..._popular.json and ..._adversarial.json: those that are there, or the one file named."""
    if is_table(source.data):
        return from_table(source, ("question", "answer"), _row)
    root, pictures = folder(source), Pictures(source, "val2014")
    if source.split != TASK.split:
        raise RessaError(f"{root}: POPE's files have no splits: leave split ('{source.split}') out")
    one = Path(source.data)
    paths = [one] if one.is_file() else sorted(root.glob("*pope_*.json"))
    if not paths:
        raise RessaError(f"{root}: no coco_pope_random.json, ..._popular.json or ..._adversarial.json there")
    samples = []
    for path in paths:
        kind = next((name for name in DRAWN if name in path.name), path.stem)
        for raw, where in json_lines(path):
            picture = pictures.find(where, need(raw, "image", str, where))
            samples.append(_sample((raw, where), picture, ("text", "label"), kind))
    return Reading(samples)


def _row(raw: Mapping[str, Any], where: str, picture: Picture) -> Sample:
    return _sample((raw, where), picture, ("question", "answer"), raw.get("category"))


def _sample(row: Row, picture: Picture, fields: tuple[str, str], kind: str | None) -> Sample:
    (raw, where), (question, label) = row, fields
    answer = need(raw, label, str, where).lower()
    if answer not in ("yes", "no"):
        raise RessaError(f'{where}: field "{label}" must be yes or no, not {answer}')
    key = f"{kind or 'pope'}-{identifier(raw, 'question_id', where)}"
    record = Record(key, need(raw, question, str, where), (answer,), kind=kind, image=picture)
    return Sample(record, {"drawn": kind} if kind else {})


def measure(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    return yes_or_no([not says_no(answer) for answer in answers], [s.record.answers[0] == "yes" for s in samples])


TASK = Task(
    name="pope",
    title="POPE",
    files="`coco_pope_random.json`, `coco_pope_popular.json`, `coco_pope_adversarial.json`, `val2014/`",
    hub="lmms-lab/POPE",
    split="test",
    read=read,
    measure=measure,
    metrics="F1, accuracy, precision, recall, share of yes; by how the absent things were drawn",
)
