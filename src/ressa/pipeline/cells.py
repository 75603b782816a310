"""The cells of a study, made one after the other by one process; others may work on the same folder meanwhile.

A cell is locked while it is made. What it came to stands in results.json of its folder, written last; of one that
failed, in error.txt, which the next call tries again. Stages that cells have in common are made once (`store`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ressa.errors import RessaError
from ressa.files.locks import held
from ressa.files.text import write_atomic
from ressa.pipeline.recipe import write_recipe
from ressa.pipeline.results import RESULTS, write_results, write_table
from ressa.pipeline.run import check, run
from ressa.pipeline.store import Store
from ressa.pipeline.study import Cell, Study
from ressa.settings import Progress

ERROR, LOG = "error.txt", "log.txt"
POLL = 1.0  # seconds between two looks at what other processes make

Begin = Callable[[str], Progress]  # gives the progress callable of a stage


@dataclass
class Settled:
    """Which cells are finished or have failed since this object was made."""

    study: Study
    before: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = {cell.name: _written(cell.folder / ERROR) for cell in self.study.cells}

    def failed(self, cell: Cell) -> bool:
        return _written(cell.folder / ERROR) not in (None, self.before[cell.name])

    def __call__(self, cell: Cell) -> bool:
        return finished(cell) or self.failed(cell)


def finished(cell: Cell) -> bool:
    return (cell.folder / RESULTS).is_file()


def _written(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def check_study(study: Study) -> None:
    """Raises RessaError for what a cell that is not finished would be refused for, before any is begun."""
    seen = set()
    for cell in study.cells:
        recipe = cell.recipe
        splits = tuple(section.split for section in (recipe.prune, recipe.repair) if section)
        about = (recipe.model, recipe.data, splits, recipe.evaluate, recipe.runtime, bool(recipe.prune))
        if about not in seen and not finished(cell):
            check(recipe)
        seen.add(about)


def shard(cells: Sequence[Cell], text: str) -> tuple[Cell, ...]:
    """Every N-th cell from the I-th on, for a text "I/N". Raises RessaError for anything else."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise RessaError(f"shard: '{text}' is not I/N with I from 1 to N, as 1/4 to 4/4 are")
    return tuple(cells[int(first) - 1 :: int(count)])


def make(
    study: Study,
    cells: Sequence[Cell],
    progress: Callable[[int, int, str], None],
    log: Callable[[], Begin],
    settled: Settled | None = None,
) -> None:
    """Makes `cells` of `study`, in their order, until each is finished or has failed, here or in another process.

    Args:
        progress: called with (cells done, in all, what is made).
        log: makes what gives progress callables; called while stdout and stderr lead to a cell's log.
    """
    settled, left = settled or Settled(study), list(cells)
    while left:
        for cell in left:
            cell_progress = _CellProgress(progress, sum(map(settled, cells)), len(cells), cell.name)
            if not settled(cell):
                _try(study, cell, settled, cell_progress, log)
        before, left = len(left), [cell for cell in left if not settled(cell)]
        progress(len(cells) - len(left), len(cells), "waiting for other processes" if left else "")
        if len(left) == before:
            time.sleep(POLL)


@dataclass(frozen=True)
class _CellProgress:
    """The progress of a stage as that of the study: its cell, its name and how far it is."""

    progress: Callable[[int, int, str], None]
    done: int
    total: int
    cell: str

    def begin(self, log: Begin, stage: str) -> Progress:
        logged = log(stage)
        print(f"{_now()} {stage}", flush=True)

        def update(done: int, total: int, what: str) -> None:
            logged(done, total, what)
            self.progress(self.done, self.total, f"{self.cell}: {stage} {done} of {total}")

        self.progress(self.done, self.total, f"{self.cell}: {stage}")
        return update


def _try(study: Study, cell: Cell, settled: Settled, cell_progress: _CellProgress, log: Callable[[], Begin]) -> None:
    """Makes a cell, unless another process has it or is done with it."""
    with held(study.out / "locks" / f"{cell.name}.lock") as ours:
        if not ours or settled(cell):
            return
        error = cell.folder / ERROR
        error.unlink(missing_ok=True)
        write_atomic(cell.folder / "recipe.yaml", write_recipe(cell.recipe))
        try:
            with _logged(cell.folder / LOG):
                begin = log()
                run(cell.recipe, lambda stage: cell_progress.begin(begin, stage), Store(study.shared))
                write_results(cell)
                print(f"{_now()} finished")
        except Exception as fault:
            if ours():  # or it failed because another process took it over
                write_atomic(error, _text(fault))
    write_table(study)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _text(fault: Exception) -> str:
    return f"{fault}\n" if isinstance(fault, RessaError) else traceback.format_exc()


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """What is printed meanwhile goes into the file, behind what stands there."""
    with file.open("a", encoding="utf-8", buffering=1) as stream, redirect_stdout(stream), redirect_stderr(stream):
        yield


def report_failures(study: Study) -> None:
    """Raises RessaError if cells failed or were left unfinished."""
    failed: dict[str, Any] = {c.name: c.folder / ERROR for c in study.cells if (c.folder / ERROR).is_file()}
    left = [cell for cell in study.cells if not finished(cell) and cell.name not in failed]
    if failed:
        name, file = next(iter(failed.items()))
        why = file.read_text(encoding="utf-8").strip().splitlines()[-1]
        raise RessaError(
            f"{len(failed)} of {len(study.cells)} cells failed; {name}: {why} ({file}); the same command tries again"
        )
    if left:
        raise RessaError(f"{len(left)} of {len(study.cells)} cells are unfinished: the same command goes on with them")
