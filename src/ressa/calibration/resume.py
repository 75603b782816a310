"""How a stopped run goes on: what it has finished lies in a hidden folder beside its output, with what it was about."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.files.folders import tidy_parents
from ressa.machine import versions
from ressa.model.load import read_config, resolve
from ressa.model.shards import JOURNAL, Shards
from ressa.model.streamed import Streamed, matrices
from ressa.model.structure import Block
from ressa.parallel import team

NOTE = "arguments.json"
LEFT = (NOTE, JOURNAL)  # what a finished run leaves in the folder


def work_path(out: Path, what: str) -> Path:
    """The hidden folder beside `out`."""
    out = out.absolute()
    return out.parent / f".{out.name}.{what}"


def begin(work: Path, identity: dict[str, Any]) -> str:
    """Make the folder `work`, emptied unless a run with the same identity and versions made it; their digest.

    Raises:
        RessaError: another process is at work there.
    """
    note, text = work / NOTE, json.dumps(identity | {"versions": versions("peft")}, indent=1)
    work.mkdir(parents=True, exist_ok=True)
    _hold(work)
    if not note.is_file() or note.read_text(encoding="utf-8") != text:
        for left in work.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        note.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def _hold(work: Path) -> None:
    """Lock `work` until this process ends, however it does, or begins again; file systems without locks do without."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    if work in _held:
        os.close(_held.pop(work))
    folder = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _held[work] = folder
    except BlockingIOError:
        os.close(folder)
        raise RessaError(f"{work}: another run is at work there; wait for it, or name another output") from None
    except OSError:
        os.close(folder)


_held: dict[Path, int] = {}


def stamp(name: str | Path) -> list[Any]:
    """Names, sizes and times of a model's files; of a model on the hub its commit."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        return [str(name), getattr(read_config(name), "_commit_hash", None)]
    found = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file() and file.suffix != ".md"]
    return [str(name), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in found)]


def digest_of(records: list[Record]) -> str:
    """What tells whether two lists of records are the same."""
    digest = hashlib.sha256()
    for record in records:
        image = record.image.identity() if record.image else None
        digest.update(repr((record.id, record.question, record.prefix, record.references, image)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class FinishedBlocks:
    """The blocks that stand in the output's own files; those that an earlier run wrote are read from there.

    Args:
        changed: the linears that are pruned.
    """

    shards: Shards
    streamed: Streamed
    changed: Collection[str] = ()

    def __post_init__(self) -> None:
        self.streamed.write_to(self.shards.create())
        for block in filter(self.has, self.shards.blocks):
            self.streamed.kept(block)

    def has(self, block: Block) -> bool:
        """Whether this run or one like it has written it, whole."""
        return self.shards.has(block)

    def put_back(self, block: Block) -> None:
        """The block as it was written, in the place of what is in memory."""
        self.streamed.put_back(block)

    def keep(self, block: Block) -> None:
        """Raises RessaError if it cannot be written; the others stay."""
        changed = {name: linear for name, linear in block.linears.items() if name in self.changed}
        self.shards.keep(block, [place.name for place in matrices(replace(block, linears=changed))])
        self.streamed.kept(block)

    def complete(self) -> None:
        """Writes the blocks that are left as they were read, then what is outside of blocks."""
        for block in self.shards.blocks:
            if not self.has(block):
                with self.streamed.present(block):
                    self.keep(block)
        self.shards.finish()

    def forget(self) -> None:
        if self.shards.writes:
            shutil.rmtree(self.shards.folder, ignore_errors=True)


@contextmanager
def finished_blocks(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """The hidden folder in which the output of such a run is filled, by the first process. Nothing is left where
    nothing was."""
    work = work_path(out, "prune")
    if team().rank:
        yield work
        return
    with tidy_parents(work):
        begin(work, identity)
        try:
            yield work
        finally:
            if work.is_dir() and not (work / JOURNAL).is_file():
                shutil.rmtree(work, ignore_errors=True)
