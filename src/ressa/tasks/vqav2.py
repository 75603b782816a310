"""VQAv2 (Goyal et al. 2017): questions about COCO pictures, ten people's answers to each. visualqa.org/download.html"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.tasks import common, tables
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, beside, find, ident, listed, need, texts


def read(source: Source) -> Reading:
    """Questions and annotations of a split, joined by question_id."""
    if tables.is_table(source):
        rows = tables.rows(source, ("question", "answers", "image"))
        return Reading(
            [sample(raw, raw, where, where, tables.picture(pictures, where)) for raw, where, pictures in rows]
        )
    return joined(
        source, f"v2_OpenEnded_mscoco_{source.split}*_questions.json", f"v2_mscoco_{source.split}*_annotations.json"
    )


def joined(source: Source, questions: str, annotations: str) -> Reading:
    """The official pair of files. VQAv2 and OK-VQA ship the same fields."""
    answers: dict[str, tuple[Mapping[str, Any], str]] = {}
    asked, told = find(source, questions), beside(source, annotations)
    for raw, where in listed(told, "annotations"):
        answers[ident(raw, "question_id", where)] = raw, where
    place = next((name for name in ("val2014", "train2014", "test2015") if name in asked.name), "")
    pictures, samples = Pictures(source, place), []
    for raw, where in listed(asked, "questions"):
        key = ident(raw, "question_id", where)
        if key not in answers:
            raise RessaError(f'{where}: field "question_id" is {key}, which {told} has no annotation for')
        number = need(raw, "image_id", int, where)
        picture = pictures.find(f"COCO_{place}_{number:012d}.jpg", where)
        samples.append(sample(raw, *answers[key], where, picture))
    return Reading(samples)


def sample(
    asked: Mapping[str, Any], told: Mapping[str, Any], told_where: str, where: str, picture: Picture | None
) -> Sample:
    answers = texts(told, "answers", told_where, inner="answer")
    named = {"answer type": told.get("answer_type"), "question type": told.get("question_type")}
    kinds = {name: str(value) for name, value in named.items() if value}
    question = need(asked, "question", str, where)
    record = Record(ident(asked, "question_id", where), question, answers, kind=kinds.get("answer type"), image=picture)
    return Sample(record, kinds)


TASK = Task(
    name="vqav2",
    title="VQAv2",
    files="`v2_OpenEnded_mscoco_val2014_questions.json`, `v2_mscoco_val2014_annotations.json`, `val2014/`",
    hub="lmms-lab/VQAv2",
    split="val",
    read=read,
    measure=common.vqa,
    metrics="VQA accuracy, by answer and question type",
    asks=common.ANSWER,
    how=common.SHORT,
)
