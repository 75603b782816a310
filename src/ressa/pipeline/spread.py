"""A study's cells on several processes: of this machine, or of a Ray cluster. All of them meet in the study's folder.

What keeps two from making the same is in the folder itself (`files/locks`), so that nothing depends on who starts whom.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ressa.errors import RessaError, one_line
from ressa.pipeline.cells import POLL, Begin, Settled, finished, make
from ressa.pipeline.study import Cell, Study, read_study
from ressa.settings import Runtime

Watch = Callable[[int, int, str], None]


def threads_each(workers: int) -> int:
    """This process's cores, shared out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def on_processes(study: Study, command: Sequence[str], workers: int, threads: int, progress: Watch) -> None:
    """Starts `workers` processes and waits for them: `command` with --shard I/N, each going on with others' cells.

    What they print goes to worker-I.txt in the study's folder. A process that ends early costs its share of time only:
    the others make its cells.
    """
    settled = Settled(study)
    study.out.mkdir(parents=True, exist_ok=True)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    with ExitStack() as ending:
        started = []
        for worker in range(1, workers + 1):
            printed = ending.enter_context((study.out / f"worker-{worker}.txt").open("w", encoding="utf-8"))
            words = [sys.executable, "-m", "ressa.cli", *command, "--shard", f"{worker}/{workers}", "--then-others"]
            started.append(subprocess.Popen(words, stdout=printed, stderr=printed, env=environment))
            ending.callback(_end, started[-1])
        while any(process.poll() is None for process in started):
            _tell(study, settled, progress)
            time.sleep(POLL)
    _tell(study, settled, progress)
    codes = [process.returncode for process in started]
    if any(codes) and not all(settled(cell) for cell in study.cells):
        number = next(i for i, code in enumerate(codes, 1) if code)
        file = study.out / f"worker-{number}.txt"
        said = one_line(RuntimeError(file.read_text(encoding="utf-8")[-300:]))
        raise RessaError(
            f"worker {number} ended with code {codes[number - 1]} ({said}, {file}), and no other finished its cells: "
            "the same command goes on with them"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def _tell(study: Study, settled: Settled, progress: Watch) -> None:
    """How many cells are settled, and which ones are being made."""
    done = sum(map(settled, study.cells))
    locked = [cell.name for cell in study.cells if (study.out / "locks" / f"{cell.name}.lock").exists()]
    progress(done, len(study.cells), ", ".join(locked))


@dataclass(frozen=True)
class Task:
    """A cell as a Ray worker finds it: all it needs is the study's file and the folder it was started in."""

    folder: str
    path: str
    runtime: Runtime
    log: Callable[[], Begin]

    def __call__(self, name: str) -> None:
        os.chdir(self.folder)
        study = read_study(self.path, self.runtime)
        make(study, [cell for cell in study.cells if cell.name == name], lambda *_: None, self.log)


def on_ray(study: Study, address: str, task: Task, workers: int, threads: int, progress: Watch) -> None:
    """Each unfinished cell as a task of `threads` CPUs on the Ray cluster at `address`, which shares this folder.

    "local" starts a cluster here, with room for `workers` tasks, and ends it.

    Raises:
        RessaError: Ray is not installed, or no cluster answers.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ImportError:
        raise RessaError("--ray needs Ray, which is not installed: pip install 'ressa[ray]'") from None
    local: dict[str, Any] = {"num_cpus": workers * threads, "include_dashboard": False} if address == "local" else {}
    settled = Settled(study)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:
        raise RessaError(f"ray: no cluster at {address}: {one_line(error)}") from None
    try:
        remote = ray.remote(num_cpus=threads, max_retries=3)(_carried_out)
        left = [remote.remote(task, cell.name) for cell in study.cells if not finished(cell)]
        while left:
            done, left = ray.wait(left, timeout=POLL)
            for one in done:
                ray.get(one)
            _tell(study, settled, progress)
    except ray.exceptions.RayError as error:
        raise RessaError(f"ray: {one_line(error)}; the same command goes on") from None
    finally:
        ray.shutdown()


def _carried_out(task: Task, name: str) -> None:
    task(name)


def others_too(cells: Sequence[Cell], mine: Sequence[Cell]) -> list[Cell]:
    """One's own cells first, then all the others."""
    return [*mine, *(cell for cell in cells if cell not in mine)]


def shipped(name: str) -> Path:
    """The file of a study: a path, or the name of one that ressa carries."""
    path, carried = Path(name), Path(__file__).parents[1] / "studies" / f"{name}.yaml"
    return carried if not path.exists() and carried.is_file() else path
