"""Processes of their own in which nothing is imported again: forked by a server that has imported all, computed nothing
and started no thread. A fork of the process that runs the tests would inherit what native libraries remember of threads
that it does not have, and crash.

For tests of what a killed process leaves, or of what several do together. What a start of the command line itself does
is tested with `python -m ressa.cli` (`tests/cli/test_exits.py`).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["ressa.pruning.verb", "ressa.evaluation.verb", "ressa.cli"])


class Forked:
    """A child that carries out `act(*args)` and leaves; what it says goes to the file `said`, and is read with `text`.

    `act` and its arguments are pickled.
    """

    def __init__(self, said: Path, act: Callable[..., Any], *args: object, **environment: object) -> None:
        self.said = said
        self.process = SERVER.Process(target=_carry_out, args=(said, act, args, environment))
        self.process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code once it has ended, -9 if it was killed by signal 9; None if it still runs after `seconds`."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill_when(self, happens: Callable[[], Any], seconds: float = 120) -> None:
        """Kills it as soon as `happens()` holds. Raises AssertionError if it ends before, or does not get that far."""
        try:
            end = time.monotonic() + seconds
            while not happens():
                assert self.wait(0) is None, f"it ended before it could be killed\n{self.text()}"
                assert time.monotonic() < end, f"waited too long\n{self.text()}"
                time.sleep(0.005)
        finally:
            self.process.kill()
            self.wait()

    def text(self) -> str:
        """What it has said so far, on either stream."""
        return self.said.read_text(encoding="utf-8") if self.said.is_file() else ""


def command(said: Path, *words: object) -> Forked:
    """`ressa words`."""
    return Forked(said, ressa, *words)


def ressa(*words: object) -> None:
    """The command line, in this process; leaves by SystemExit."""
    from ressa import cli

    sys.argv = ["ressa", *map(str, words)]
    cli.main()


def team(folder: Path, size: int, act: Callable[..., Any], *args: object) -> list[Forked]:
    """`act` in as many processes as a launcher would start, which find one another; `folder` keeps what they say."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
    return [Forked(folder / f"process {i}.txt", act, *args, **where, **ranks[i]) for i in range(size)]


def _carry_out(said: Path, act: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, object]) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    with said.open("w", encoding="utf-8") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    act(*args)
