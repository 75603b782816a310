"""Flickr30k image-text retrieval: which of all captions fits a picture (TR), which picture a caption (IR)."""

from __future__ import annotations

from collections.abc import Sequence

from ressa.data.records import Record
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.karpathy import flickr
from ressa.tasks.metrics.basic import recall_at
from ressa.tasks.metrics.intervals import Measured

TEXT, IMAGE = "text retrieval", "image retrieval"


def queries(images: Sequence[Sample]) -> list[Sample]:
    """One query a picture, then one a caption. The answer to a query is the rank of the first right item, from 1."""
    found = [
        Sample(Record(s.record.id, None, s.record.answers, s.record.caption, TEXT, s.record.image)) for s in images
    ]
    for s in images:
        for i, caption in enumerate(s.record.answers):
            record = Record(f"{s.record.id}#{i}", None, (caption,), caption, IMAGE, s.record.image)
            found.append(Sample(record))
    return found


def read(source: Source) -> Reading:
    """The pictures, each with its captions; `evaluate.retrieve` makes queries of those that are asked."""
    return flickr(source)


def measure(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    pairs = list(zip(samples, answers, strict=True))
    ranks = {kind: [int(said) for s, said in pairs if s.record.kind == kind] for kind in (TEXT, IMAGE)}
    return recall_at(ranks[TEXT], "TR") | recall_at(ranks[IMAGE], "IR")


TASK = Task(
    name="flickr30k-retrieval",
    title="Flickr30k retrieval",
    files="as `flickr30k`",
    hub="lmms-lab/flickr30k",
    split="test",
    read=read,
    measure=measure,
    metrics="recall at 1, 5, 10 of captions for a picture (TR) and pictures for a caption (IR)",
    asks=common.DESCRIBE,
    how=common.CAPTION,
    mode="retrieval",
)
