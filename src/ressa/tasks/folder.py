"""Records of the user's own: a folder with {split}.jsonl and pictures, as `ressa data` writes it (docs/data.md)."""

from __future__ import annotations

from collections.abc import Sequence

from ressa.data.records import read_records
from ressa.tasks import common
from ressa.tasks.base import Generation, Reading, Sample, Source, Task
from ressa.tasks.metrics.intervals import Measured


def read(source: Source) -> Reading:
    return Reading([Sample(record) for record in read_records(source.data, source.split)])


def measure(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    scores = common.vqa(samples, answers)
    return {name: scores[name] for name in ("exact_match", "vqa_accuracy")}


_GREEDY = Generation(max_new_tokens=32)
TASK = Task(
    name="folder",
    title="your own",
    files="`{split}.jsonl` and pictures ([data](data.md)), or what else `--data` reads elsewhere",
    split="test",
    read=read,
    measure=measure,
    metrics="exact match, VQA accuracy, by `kind`",
    asks={"blip": "{question}", "chat": "{question}"},
    how={"blip": _GREEDY, "vicuna": _GREEDY, "chat": _GREEDY},
)
