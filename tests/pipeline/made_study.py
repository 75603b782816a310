"""Studies made within this process, and their tables."""

from __future__ import annotations

import csv
from pathlib import Path

from ressa.pipeline import cells as engine
from ressa.pipeline.study import Study

VARYING = ("seconds", "evaluation_seconds", "peak_memory_bytes")  # from call to call


def make(study: Study) -> None:
    engine.check_study(study)
    engine.make(study, study.cells, lambda *_: None, lambda: lambda stage: lambda *_: None)


def table(out: Path | str) -> list[dict[str, str]]:
    """The table as it lies on the disk, without what differs from call to call."""
    with (Path(out) / "results.csv").open(encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if row["measurement"] not in VARYING]
