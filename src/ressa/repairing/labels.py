"""The teacher's own answers as labels: pictures and prompts are then all that repair needs of its data."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ressa import parallel
from ressa.answering.cache import files_of
from ressa.answering.generate import answers
from ressa.calibration.rehearsal import check_room
from ressa.calibration.resume import work_path
from ressa.calibration.samples import mixture
from ressa.data.records import Record
from ressa.data.seeing import how_seen
from ressa.errors import RessaError
from ressa.files.paths import path_of
from ressa.model.load import load_to_ask
from ressa.repairing.settings import Repair
from ressa.repairing.stages import Where
from ressa.settings import Progress
from ressa.tasks.base import Generation

LABELS = "labels.jsonl"


def records_of(
    data: Any, teacher: str | Path, settings: Repair, where: Where, out: Path, progress: Progress | None = None
) -> tuple[list[Record], dict[str, Any]]:
    """The records that `settings` draw from `data`, as `labelled` gives them; `out` is the folder to be written."""
    unlabelled = settings.labels != "data"
    records = mixture(data, settings.split, settings.samples, settings.seed, unlabelled=unlabelled)
    records = describing(records, settings.describe, settings.seed)
    return labelled(records, teacher, settings, where, _said_path(out, settings), progress)


def describing(records: Sequence[Record], share: float, seed: int) -> list[Record]:
    """`records`, a share of whose questions about pictures, drawn by the seed, ask for a caption instead."""
    asking = [i for i, record in enumerate(records) if record.image is not None and record.question is not None]
    chosen = set(random.Random(seed).sample(asking, round(share * len(asking))))
    return [replace(r, question=None, answers=(), caption="") if i in chosen else r for i, r in enumerate(records)]


def labelled(
    records: Sequence[Record],
    teacher: str | Path,
    settings: Repair,
    where: Where,
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
    asked = {i: replace(r, id=f"{r.id} ({i})") for i, r in enumerate(records) if _to_ask(r, settings.labels)}
    if not asked:
        return list(records), {}
    device = settings.teacher_device or parallel.device_of(where.device)
    model, processor, machine = load_to_ask(teacher, device, where.dtype)
    how, questions = Generation(max_new_tokens=settings.label_tokens), list(asked.values())
    check_room(model, processor, questions, how.max_new_tokens)
    how_seen(model, processor, questions)  # a blind teacher would answer too
    said = answers(model, processor, questions, cache, settings.batch_size, how, progress, cut=False)
    del model
    gc.collect()
    answered = [_answered(r, said[asked[i].id]) if i in asked else r for i, r in enumerate(records)]
    found = [record for record in answered if any(record.references)]
    if not found:
        limit = f"within {how.max_new_tokens} tokens: raise label_tokens"
        raise RessaError(f"labels: none of {len(asked)} answers of the teacher ends {limit}")
    told = {"asked": len(asked), "left_out": len(records) - len(found), "machine": machine.describe()}
    return found, {"labels": told}


def _to_ask(record: Record, labels: str) -> bool:
    """Whether the teacher answers: not what is text alone, which asks nothing."""
    return not record.references or (labels == "teacher" and not _is_text(record))


def _is_text(record: Record) -> bool:
    return record.question is None and record.caption is None


def _answered(record: Record, text: str) -> Record:
    return replace(record, caption=text) if record.question is None else replace(record, answers=(text,))


def _said_path(out: Path, settings: Repair) -> Path:
    """Where the teacher's answers are kept: with the teacher's cache, for every run, or hidden beside `out` till it is
    written."""
    if settings.teacher_cache is not None:
        return path_of(settings.teacher_cache, "the teacher's cache") / LABELS
    return work_path(out, LABELS)


def forget(out: Path) -> None:
    """Remove the answers that were kept beside `out`."""
    for file in files_of(work_path(out, LABELS)):
        file.unlink()
