"""A task's files, read as `ressa evaluate` reads them: its own split, where none is named."""

from __future__ import annotations

from pathlib import Path

from ressa import tasks
from ressa.tasks.base import Reading, Source


def read(name: str, data: Path | str, split: str | None = None) -> Reading:
    return tasks.get(name).read(Source(data, split or tasks.get(name).split))
