"""Processes of their own in which nothing is imported again: forked from the one that runs the tests.

For tests of what a killed process leaves, or of what several do together. What a start of the command line itself does
is tested with `python -m ressa.cli` (`tests/cli/test_exits.py`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from ressa import cli


class Forked:
    """A child that carries out `act` and leaves; what it says goes to the file `said`, and is read with `text`."""

    def __init__(self, said: Path, act: Callable[[], Any], **environment: object) -> None:
        self.said, self.code = said, None
        with warnings.catch_warnings():  # newer Pythons warn of threads, of which the child uses none
            warnings.simplefilter("ignore")
            self.pid = os.fork()
        if not self.pid:
            os.environ |= {name: str(value) for name, value in environment.items()}
            _carry_out(said, act)

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code once it has ended, -9 if it was killed by signal 9; None if it still runs after `seconds`."""
        end = None if seconds is None else time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, 0 if end is None else os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                break
            else:
                time.sleep(0.01)
        return self.code

    def kill(self) -> None:
        """At once, with nothing tidied up."""
        if self.wait(0) is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def kill_when(self, happens: Callable[[], Any], seconds: float = 120) -> None:
        """Kills it as soon as `happens()` holds. Raises AssertionError if it ends before, or does not get that far."""
        try:
            end = time.monotonic() + seconds
            while not happens():
                assert self.wait(0) is None, f"it ended before it could be killed\n{self.text()}"
                assert time.monotonic() < end, f"waited too long\n{self.text()}"
                time.sleep(0.005)
        finally:
            self.kill()

    def text(self) -> str:
        """What it has said so far, on either stream."""
        return self.said.read_text(encoding="utf-8") if self.said.is_file() else ""


def command(said: Path, *words: object) -> Forked:
    """`ressa words`."""

    return Forked(said, lambda: ressa(*words))


def ressa(*words: object) -> None:
    """The command line, in this process; leaves by SystemExit."""
    sys.argv = ["ressa", *map(str, words)]
    cli.main()


def team(folder: Path, act: Callable[[], Any], size: int) -> list[Forked]:
    """`act` in as many processes as a launcher would start, which find one another; `folder` keeps what they say."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def alone() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # what a test before this one was: one process
        act()

    where = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
    return [Forked(folder / f"process {i}.txt", alone, **where, **ranks[i]) for i in range(size)]


def _carry_out(said: Path, act: Callable[[], Any]) -> None:
    """Runs in the child, and never returns to the tests."""
    code = 1
    try:
        with said.open("w", encoding="utf-8") as stream:
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
        sys.stdout = sys.stderr = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        warnings.simplefilter("ignore")
        act()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
