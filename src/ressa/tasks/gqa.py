"""GQA (Hudson & Manning 2019): compositional questions about real pictures. cs.stanford.edu/people/dorarad/gqa"""

from __future__ import annotations

from ressa.data.records import Record
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, find, ident, named, need


def read(source: Source) -> Reading:
    path = find(source, f"{source.split}_questions.json", f"{source.split}*questions*.json")
    pictures, samples = Pictures(source), []
    for key, raw, where in named(path):
        kinds = raw.get("types") if isinstance(raw.get("types"), dict) else {}
        told = {f"{name} type": str(kinds[name]) for name in ("structural", "semantic") if kinds and kinds.get(name)}
        picture = pictures.find(f"{ident(raw, 'imageId', where)}.jpg", where)
        question, answer = need(raw, "question", str, where), need(raw, "answer", str, where)
        record = Record(key, question, (answer,), kind=told.get("structural type"), image=picture)
        samples.append(Sample(record, told))
    return Reading(samples)


TASK = Task(
    name="gqa",
    title="GQA",
    files="`testdev_balanced_questions.json`, `images/`",
    split="testdev_balanced",
    read=read,
    measure=common.matches,
    metrics="exact match after VQA's normalisation, by structural and semantic type",
    asks=common.ANSWER,
    how=common.SHORT,
)
