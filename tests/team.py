"""Prunes in several processes that speak through gloo: `python tests/team.py JOBS.json`, one start of torch for all.

JOBS.json is {name: {"processes": n, "break": what goes wrong in which process, or none, ...arguments of ressa.prune}}.
Prints {name: [what each process ended with: "", or the text of its error]}. Processes are forked, so that none imports
anything again.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

import ressa
from ressa.calibration.sums import Sums
from ressa.errors import RessaError
from ressa.model.shards import Shards
from ressa.pruning import verb


def main() -> None:
    torch.set_num_threads(1)  # more would not outlive a fork
    ended = {name: team(job) for name, job in json.loads(Path(sys.argv[1]).read_text()).items()}
    print("\n" + json.dumps(ended))


def team(job: dict[str, Any]) -> list[str]:
    """What each process of a job ended with."""
    size, broken = job.pop("processes"), job.pop("break", None)
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        ends = [Path(folder, str(rank)) for rank in range(size)]
        children = []
        for rank, end in enumerate(ends):
            if not (child := os.fork()):
                where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
                os.environ |= {key: str(value) for key, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"}
                one(job, end, broken if broken and broken["rank"] == rank else None)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        return [end.read_text() if end.is_file() else "killed" for end in ends]


def one(job: dict[str, Any], end: Path, broken: dict[str, Any] | None) -> None:
    """Prunes and leaves, as a process of its own does."""
    try:
        warnings.simplefilter("ignore")
        if broken:
            BREAKS[broken["what"]]()
        ressa.prune(**job)
        end.write_text("")
    except RessaError as error:
        end.write_text(str(error))
    except BaseException:
        end.write_text(traceback.format_exc())
    finally:
        os._exit(0)


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

    Sums._reduce = reduce  # type: ignore[method-assign]


def _in_a_write() -> None:
    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    Shards._write = write  # type: ignore[method-assign]


def _before_it_begins() -> None:
    def check(*_: Any) -> None:
        raise ValueError("a fault")

    verb.check_output = check


BREAKS = {"solve": _in_a_solve, "product": _in_a_product, "write": _in_a_write, "start": _before_it_begins}

if __name__ == "__main__":
    main()
