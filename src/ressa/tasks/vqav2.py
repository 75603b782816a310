"""VQAv2 (Goyal et al. 2017): questions about COCO pictures, ten people's answers to each. visualqa.org/download.html"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ressa.data.fields import identifier, need, texts
from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.data.stream import Row, entries
from ressa.data.tables import is_table
from ressa.errors import RessaError
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, beside, find, from_table


def read(source: Source) -> Reading:
    """Questions and annotations of a split, joined by question_id."""
    if is_table(source.data):
        return from_table(source, ("question", "answers"), row)
    return joined(
        source, f"v2_OpenEnded_mscoco_{source.split}*_questions.json", f"v2_mscoco_{source.split}*_annotations.json"
    )


def joined(source: Source, questions: str, annotations: str) -> Reading:
    """The official pair of files. VQAv2 and OK-VQA ship the same fields."""
    path, answered = find(source, questions), beside(source, annotations)
    rows = entries(answered, "annotations.item", 'an object with a list of "annotations"')
    answers = {identifier(raw, "question_id", where): (raw, where) for raw, where in rows}
    place = next((name for name in ("val2014", "train2014", "test2015") if name in path.name), "")
    pictures, samples = Pictures(source, place), []
    for raw, where in entries(path, "questions.item", 'an object with a list of "questions"'):
        key = identifier(raw, "question_id", where)
        if key not in answers:
            raise RessaError(f'{where}: field "question_id" is {key}, which {answered} has no annotation for')
        picture = pictures.find(where, f"COCO_{place}_{need(raw, 'image_id', int, where):012d}.jpg")
        samples.append(_sample((raw, where), answers[key], picture))
    return Reading(samples)


def row(raw: Mapping[str, Any], where: str, picture: Picture) -> Sample:
    """The sample of a row, which is question and annotation in one."""
    return _sample((raw, where), (raw, where), picture)


def _sample(question: Row, annotation: Row, picture: Picture) -> Sample:
    (asked, where), (answered, answered_where) = question, annotation
    answers = texts(answered, "answers", answered_where, inner="answer")
    kinds = {key.replace("_", " "): str(answered[key]) for key in ("answer_type", "question_type") if answered.get(key)}
    key, words = identifier(asked, "question_id", where), need(asked, "question", str, where)
    return Sample(Record(key, words, answers, kind=kinds.get("answer type"), image=picture), kinds)


TASK = Task(
    name="vqav2",
    title="VQAv2",
    files="`v2_OpenEnded_mscoco_val2014_questions.json`, `v2_mscoco_val2014_annotations.json`, `val2014/`",
    hub="lmms-lab/VQAv2",
    split="val",
    read=read,
    measure=common.vqa,
    metrics="VQA accuracy, by answer and question type",
)
