"""Pictures of a plan, made by many threads: read, normalised, written; what became of each goes into the plan."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ressa.errors import RessaError
from ressa.preparation import plan
from ressa.preparation.pictures import SUFFIX, normalise
from ressa.preparation.places import Places
from ressa.preparation.plan import Outcome, Planned
from ressa.preparation.settings import Prepare, Progress
from ressa.preparation.unusable import Unusable

AHEAD = 8  # pictures under way for each worker
TOGETHER = 64  # pictures that one transaction keeps
ENOUGH = 100  # pictures after which the share of failures means something


def make_pictures(db: sqlite3.Connection, folder: Path, places: Places, settings: Prepare, progress: Progress) -> None:
    """Makes what is still missing, below `folder`/images.

    Raises:
        RessaError: more than `settings.max_failed` of the pictures cannot be used, or one cannot be written.
    """
    plan.forget_lost(db, folder)
    missing = plan.to_make(db)
    failed, tried = db.execute(
        "select count(reason), count(*) from pictures where chosen and not passing and (file is not null or "
        "reason is not null)"
    ).fetchone()
    total, started, before = tried + len(missing), time.monotonic(), tried
    with _threads(settings.workers) as pool:
        jobs = (pool.submit(_make, plan.planned(db, n), folder, places, settings.max_side) for n in missing)
        for outcomes in _together(jobs, settings.workers * AHEAD):
            plan.keep(db, outcomes)
            tried += len(outcomes)
            failed += sum(outcome.file is None for outcome in outcomes)
            if failed > settings.max_failed * tried and tried >= min(ENOUGH, total):
                raise _hopeless(db, failed, tried, settings.max_failed)
            rate = (tried - before) / max(time.monotonic() - started, 1e-9)
            progress(tried, total, f"{rate:,.0f}/s, {failed:,} unusable")


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that leave nothing under way behind; Pillow's remarks on odd pictures are not for the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool = ThreadPoolExecutor(workers, thread_name_prefix="ressa-data")
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _together(jobs: Iterator[Future[Outcome]], ahead: int) -> Iterator[list[Outcome]]:
    """Results in order, some at a time, with at most `ahead` jobs under way."""
    waiting: deque[Future[Outcome]] = deque()
    done: list[Outcome] = []
    for job in jobs:
        waiting.append(job)
        if len(waiting) >= ahead:
            done.append(waiting.popleft().result())
        if len(done) >= TOGETHER:
            yield done
            done = []
    done += [job.result() for job in waiting]
    if done:
        yield done


def _make(picture: Planned, folder: Path, places: Places, max_side: int | None) -> Outcome:
    stem = file_stem(picture.name)
    try:
        made = normalise(places.read(picture.place), max_side)
    except Unusable as error:
        _forget(folder, stem, "")
        return Outcome(picture.number, None, None, (), error.reason, error.detail, error.transient)
    _write(folder, stem + made.suffix, made.data)
    _forget(folder, stem, made.suffix)
    return Outcome(picture.number, stem + made.suffix, hashlib.sha256(made.data).hexdigest(), made.changes)


def file_stem(name: str) -> str:
    """Where the picture of that name in the source lies: 256 folders, readable names, never twice the same."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    base = re.split(r"[/\\]", re.split(r"[?#]", name)[0])[-1].rsplit(".", 1)[0]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", base)[:60]
    return f"images/{digest[:2]}/{readable}-{digest[2:12]}"


def _write(folder: Path, name: str, data: bytes) -> None:
    """Whole or not at all, also if the machine stops."""
    path, part = folder / name, folder.parent / "parts" / name.replace("/", "-")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise RessaError(f"{path}: cannot be written ({error.strerror or error}); run again when it can") from None


def _forget(folder: Path, stem: str, but: str) -> None:
    """Takes away what an interrupted run may have made of the picture when it was another one."""
    for suffix in SUFFIX.values():
        if suffix != but:
            (folder / f"{stem}{suffix}").unlink(missing_ok=True)


def _hopeless(db: sqlite3.Connection, failed: int, tried: int, most: float) -> RessaError:
    reasons = plan.tally(db, "select reason, count(*) from pictures where reason is not null group by reason")
    name, detail = db.execute("select name, detail from pictures where reason is not null limit 1").fetchone()
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda entry: -entry[1]))
    return RessaError(
        f"{failed} of {tried} pictures cannot be used ({counts}; {name}: {detail}), more than --max-failed {most:g}; "
        "put it right or allow more, and run again: what was made is kept"
    )
