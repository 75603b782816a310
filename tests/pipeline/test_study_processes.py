"""A study by several processes makes every cell once, whoever makes it and however often it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_study import make, table

import forked
import ressa
from ressa.errors import RessaError
from ressa.pipeline import cells as engine
from ressa.pipeline.results import results
from ressa.pipeline.spread import on_processes, others_too
from ressa.pipeline.study import read_study

TWELVE = {"seeds": list(range(6))}  # cells, with the grid of `told`


def start(path: Path, *words: object) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(Path(ressa.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ressa.cli", "study", str(path), *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit code, after it has ended; what it said is shown if the test fails."""
    print(process.communicate()[1].decode())
    return process.returncode


def wait_for(happens: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def finished(out: Path) -> set[Path]:
    return set(out.glob("cells/*/results.json"))


def test_a_study_killed_twice_repeats_no_finished_cell(file, told, tmp_path):
    path, out = file(seeds=[0, 1, 2]), Path(told["out"])

    def within_a_cell_after(count: int) -> bool:
        done = {results.parent.name for results in finished(out)}
        return len(done) >= count and any(lock.stem not in done for lock in (out / "locks").glob("*.lock"))

    for count in (1, 3):
        process = forked.command(tmp_path / "said.txt", "study", path)
        process.kill_when(lambda count=count: within_a_cell_after(count))
        before = {file: file.stat().st_mtime_ns for file in finished(out)}
        assert 0 < len(before) < 6
    make(study := read_study(path))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert {row["status"] for row in results(study)} == {"finished"}
    assert not list((out / "locks").glob("*.lock"))


@pytest.mark.slow  # each process spends seconds on imports
def test_two_shards_two_workers_and_one_process_give_the_same_table(file, told, tmp_path):
    tables = []
    for name in ("one", "shards", "workers"):
        path = file(out=str(tmp_path / name), **TWELVE)
        if name == "one":
            make(read_study(path))
        elif name == "shards":
            processes = [start(path, "--shard", f"{i}/2") for i in (1, 2)]
            assert [ended(process) for process in processes] == [0, 0]
        else:
            process = start(path, "--workers", 2)
            assert ended(process) == 0
        tables.append(table(tmp_path / name))
    assert tables[0] == tables[1] == tables[2]
    assert len({row["cell"] for row in tables[0]}) == 12


@pytest.mark.slow
def test_two_processes_that_take_the_same_cells_share_them(file, told):
    path = file()
    processes = [start(path, "--shard", "1/1") for _ in range(2)]
    assert [ended(process) for process in processes] == [0, 0]
    study = read_study(path)
    logs = [(cell.folder / "log.txt").read_text(encoding="utf-8") for cell in study.cells]
    assert [log.count("finished") for log in logs] == [1, 1, 1, 1]


@pytest.mark.slow  # each process spends seconds on imports
def test_the_cells_of_a_worker_that_is_killed_are_made_by_the_others(file, told):
    path, out = file(**TWELVE), Path(told["out"])
    parent = start(path, "--workers", 2)
    wait_for(lambda: len(finished(out)) >= 1)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    assert ended(parent) == 0
    assert len(finished(out)) == 12
    assert {row["status"] for row in table(out)} == {"finished"}


def test_where_all_workers_die_the_first_is_told_of(file, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    study = read_study(file())
    with pytest.raises(RessaError, match=r"worker 1 ended with code 1 .* the same command goes on"):
        on_processes(study, ["study"], 2, 1, lambda *_: None)


@pytest.mark.parametrize("told_shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_shard_that_is_none_is_refused(file, refused, told_shard):
    assert "is not I/N with I from 1 to N" in refused("study", file(), "--shard", told_shard)


def test_options_that_contradict_one_another_are_refused(file, refused):
    assert "--shard has no effect with --workers" in refused("study", file(), "--shard", "1/2", "--workers", 2)
    assert "--then-others has no effect without --shard" in refused("study", file(), "--then-others")


def test_shards_are_every_nth_cell_and_all_of_them_together(file):
    cells = read_study(file()).cells
    parts = [engine.shard(cells, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in cells)
    assert others_too(cells, parts[1]) == [*parts[1], *(cell for cell in cells if cell not in parts[1])]


def test_without_ray_its_option_says_how_to_get_it(file, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'ressa[ray]'" in refused("study", file(), "--ray", "local")


@pytest.mark.slow
def test_a_local_ray_cluster_of_two_workers_gives_the_same_table(file, told, tmp_path):
    pytest.importorskip("ray")
    process = start(file(out=str(tmp_path / "ray"), **TWELVE), "--ray", "local", "--workers", 2, "--threads", 1)
    assert ended(process) == 0
    make(read_study(file(out=str(tmp_path / "one"), **TWELVE)))
    for ours, theirs in zip(table(tmp_path / "ray"), table(tmp_path / "one"), strict=True):
        numbers = [[float(row.pop(name) or 0) for name in ("value", "low", "high")] for row in (ours, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)  # the memory of its processes lies otherwise
        assert ours == theirs
