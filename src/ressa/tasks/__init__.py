"""The benchmarks that ressa knows, by name."""

from __future__ import annotations

from ressa.errors import unknown
from ressa.tasks import (
    folder,
    gqa,
    karpathy,
    mmbench,
    mmmu,
    nocaps,
    okvqa,
    pope,
    retrieval,
    scienceqa,
    textvqa,
    vqav2,
)
from ressa.tasks.base import Task

TASKS: dict[str, Task] = {
    "folder": folder.TASK,
    "vqav2": vqav2.TASK,
    "okvqa": okvqa.TASK,
    "gqa": gqa.TASK,
    "textvqa": textvqa.TASK,
    "nocaps": nocaps.TASK,
    "coco": karpathy.COCO,
    "flickr30k": karpathy.FLICKR,
    "flickr30k-retrieval": retrieval.TASK,
    "pope": pope.TASK,
    "scienceqa": scienceqa.TASK,
    "mmbench": mmbench.TASK,
    "mmmu": mmmu.TASK,
}


def get(name: str) -> Task:
    """The task called `name`; RessaError with the nearest right name if there is none."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
