"""The teacher's own answers as labels: pictures and prompts are then all that repair needs of its data."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ressa import parallel
from ressa.answering.cache import files_of
from ressa.answering.generate import answers
from ressa.calibration.rehearsal import check_room
from ressa.calibration.resume import work_path
from ressa.data.prompts import answer_ids
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.files.paths import path_of
from ressa.model.load import load_to_ask
from ressa.repairing.settings import Repair
from ressa.settings import Progress, Runtime
from ressa.tasks.base import Generation

LABELS = "labels.jsonl"


def labelled(
    records: Sequence[Record],
    teacher: str | Path,
    settings: Repair,
    runtime: Runtime,
    cache: Path,
    progress: Progress | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """`records` with the teacher's greedy answers where `settings` want them, and what the manifest says of them.

    Answers that do not end within `label_tokens` are left out, for repair would teach that they end there, and so are
    empty ones. A record that is text alone asks nothing and keeps it.

    Args:
        cache: a JSONL file that gets answers batch by batch; those found there are not asked for again.

    Raises:
        RessaError: no answer is left.
    """
    every = settings.labels == "teacher"
    asked = [r for r in records if not r.references or (every and (r.question or r.caption is not None))]
    if settings.labels == "data" or not asked:
        return list(records), {}
    model, processor, machine = load_to_ask(teacher, parallel.device_of(runtime.device), runtime.dtype)
    how = Generation(max_new_tokens=settings.label_tokens)
    check_room(model, processor, asked, how.max_new_tokens)
    said = answers(model, processor, asked, cache, settings.batch_size, how, progress)
    lengths = {name: len(answer_ids(processor, text)) for name, text in said.items()}
    del model
    gc.collect()
    kept = {name: text for name, text in said.items() if text and lengths[name] <= how.max_new_tokens}
    if not kept:
        raise RessaError(
            f"labels: none of {len(asked)} answers of the teacher ends within {how.max_new_tokens} tokens: raise "
            "label_tokens"
        )
    empty = sum(not text for text in said.values())
    told = {"asked": len(asked), "empty": empty, "unfinished": len(asked) - len(kept) - empty}
    names = {record.id for record in asked}
    found = [_answered(r, kept[r.id]) if r.id in kept else r for r in records if r.id in kept or r.id not in names]
    return found, {"labels": told | {"machine": machine.describe()}}


def said_path(out: Path, settings: Repair) -> Path:
    """Where the teacher's answers are kept: with the teacher's cache, for every run, or hidden beside `out` till it is
    written."""
    if settings.teacher_cache is not None:
        return path_of(settings.teacher_cache, "the teacher's cache") / LABELS
    return work_path(out, LABELS)


def forget(out: Path) -> None:
    """Remove the answers that were kept beside `out`."""
    for file in files_of(work_path(out, LABELS)):
        file.unlink()


def _answered(record: Record, text: str) -> Record:
    return replace(record, caption=text) if record.question is None else replace(record, answers=(text,))
