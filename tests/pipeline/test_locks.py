"""A lock has one owner at a time; one whose owner is gone is taken over, by one of those who want it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from ressa.files import locks
from ressa.files.locks import held, waiting


def test_a_lock_has_one_owner_and_is_gone_afterwards(tmp_path):
    path = tmp_path / "below" / "a.lock"
    with held(path) as mine:
        assert mine
        assert mine()
        with held(path) as other:
            assert other is None
        assert path.is_file()
    assert list(path.parent.iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path):
    path = tmp_path / "a.lock"
    code = (
        "import os, sys; from pathlib import Path; from ressa.files.locks import held\n"
        "with held(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    source = str(Path(locks.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ | {"PYTHONPATH": source})
    assert path.is_file()
    with held(path) as mine:
        assert mine


def test_the_lock_of_another_machine_is_taken_over_when_nobody_touches_it_any_more(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text(f"elsewhere {os.getpid()} 1234")
    with held(path) as mine:
        assert mine is None
    os.utime(path, (time.time() - locks.STALE - 5,) * 2)
    with held(path) as mine:
        assert mine


def test_a_lock_that_is_held_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    path = tmp_path / "a.lock"
    with held(path):
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_who_lost_the_lock_is_told_and_does_not_take_it_from_its_new_owner(tmp_path):
    path = tmp_path / "a.lock"
    with held(path) as mine:
        path.write_text("elsewhere 1 abc")
        assert not mine()
    assert path.read_text() == "elsewhere 1 abc"


def test_of_many_who_find_an_owner_gone_one_takes_over(tmp_path):
    path, inside, most = tmp_path / "a.lock", [], []
    path.write_text("elsewhere 1 abc")
    os.utime(path, (0, 0))

    def work() -> None:
        for _ in range(20):
            with held(path) as mine:
                if mine:
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.002)
                    inside.pop()

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most
    assert set(most) == {1}


def test_who_waits_goes_on_when_the_lock_is_free_or_no_longer_needed(tmp_path):
    path = tmp_path / "a.lock"
    with held(path), waiting(path, lambda: True):
        pass
    order = []

    def later() -> None:
        with waiting(path, every=0.01):
            order.append("second")

    with held(path):
        thread = threading.Thread(target=later)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
