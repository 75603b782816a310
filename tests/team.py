"""Prunes in several processes that speak through gloo, in which something may break."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import forked
import ressa
from ressa import parallel
from ressa.calibration import sums
from ressa.errors import RessaError
from ressa.model.shards import Shards
from ressa.pruning import verb


def team(job: dict[str, Any]) -> list[str]:
    """What each process of a job ended with: "", "killed", or the text of its error.

    A job is {"processes": n, "break": {"rank": of the process, "what": goes wrong}, ...arguments of ressa.prune}, of
    which "break" may be left out.
    """
    asked = dict(job)
    size, broken = asked.pop("processes"), asked.pop("break", None)

    with tempfile.TemporaryDirectory() as folder:
        processes = forked.team(Path(folder), size, _prune, asked, broken)
        return [{0: "", -9: "killed"}.get(process.wait(), process.text()) for process in processes]


def _prune(asked: dict[str, Any], broken: dict[str, Any] | None) -> None:
    if broken and broken["rank"] == parallel.rank():
        BREAKS[broken["what"]]()
    sums.MESSAGE = 500  # so that a batch of small Grams takes several, as one of wide ones does
    ressa.prune(**asked)


def _in_a_solve() -> None:
    prunes = verb.prune_block

    def prune_block(method: Any, block: Any, *about: Any) -> None:
        if "language_model.layers.0" in block.name:
            raise RessaError("no damping helps")
        prunes(method, block, *about)

    verb.prune_block = prune_block


def _in_a_product() -> None:
    def reduce(*_: Any) -> None:
        os.kill(os.getpid(), 9)

    sums.Sums._reduce = reduce  # type: ignore[method-assign]


def _in_a_write() -> None:
    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    Shards._write = write  # type: ignore[method-assign]


def _before_it_begins() -> None:
    def check(*_: Any) -> None:
        raise ValueError("a fault")

    verb.check_output = check


BREAKS = {"solve": _in_a_solve, "product": _in_a_product, "write": _in_a_write, "start": _before_it_begins}
