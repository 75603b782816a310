"""The benchmarks that ressa knows, by name. A new one is one file, NAME.py with a TASK, and one line here."""

from __future__ import annotations

from importlib import import_module

from ressa.errors import unknown
from ressa.tasks.base import Task


def _of(module: str, name: str = "TASK") -> Task:
    return getattr(import_module(f"ressa.tasks.{module}"), name)


TASKS: dict[str, Task] = {
    "folder": _of("folder"),
    "vqav2": _of("vqav2"),
    "okvqa": _of("okvqa"),
    "gqa": _of("gqa"),
    "textvqa": _of("textvqa"),
    "nocaps": _of("nocaps"),
    "coco": _of("karpathy", "COCO"),
    "flickr30k": _of("karpathy", "FLICKR"),
    "flickr30k-retrieval": _of("retrieval"),
    "pope": _of("pope"),
    "scienceqa": _of("scienceqa"),
    "mmbench": _of("mmbench"),
    "mmmu": _of("mmmu"),
}


def get(name: str) -> Task:
    """The task called `name`; RessaError with the nearest right name if there is none."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
