"""How a stopped run goes on: what it has finished lies in a hidden folder beside its output, with what it was about."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.files.folders import tidy_parents
from ressa.machine import versions
from ressa.model.load import read_config, resolve
from ressa.model.structure import Block


def work_path(out: Path, what: str) -> Path:
    """The hidden folder beside `out`."""
    out = out.absolute()
    return out.parent / f".{out.name}.{what}"


def begin(work: Path, identity: dict[str, Any]) -> str:
    """Make the folder `work`, emptied unless a run with the same identity and versions made it; their digest.

    Raises:
        RessaError: another process is at work there.
    """
    note, text = work / "arguments.json", json.dumps(identity | {"versions": versions("peft")}, indent=1)
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
    """The pruned weights of blocks, a file each in `folder`, which tells the digest of the run that made it."""

    folder: Path
    digest: str

    def has(self, block: Block) -> bool:
        """Whether a run with the same digest has written it, whole."""
        try:
            with safe_open(self._file(block), framework="pt") as saved:
                return (saved.metadata() or {}).get("run") == self.digest
        except (OSError, SafetensorError):
            return False

    @property
    def begun(self) -> bool:
        return any(self.folder.glob("*.safetensors"))

    @torch.no_grad()
    def put_back(self, block: Block) -> None:
        saved = load_file(self._file(block))
        for name, linear in block.linears.items():
            linear.weight.copy_(saved[name])

    def keep(self, block: Block) -> None:
        """The file appears whole or not at all. Raises RessaError if it cannot be written; the others stay."""
        part = self.folder / f"{uuid.uuid4().hex}.partial"
        clone = {"memory_format": torch.contiguous_format}  # experts are views, weights of Conv1D transposed ones
        weights = {name: linear.weight.detach().cpu().clone(**clone) for name, linear in block.linears.items()}
        try:
            save_file(weights, part, {"run": self.digest})
            part.replace(self._file(block))
        except (OSError, SafetensorError) as error:
            raise RessaError(f"{self.folder}: {block.name} cannot be kept there ({error})") from None
        finally:
            part.unlink(missing_ok=True)

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, block: Block) -> Path:
        return self.folder / f"{block.name}.safetensors"


@contextmanager
def finished_blocks(out: Path, identity: dict[str, Any]) -> Iterator[FinishedBlocks]:
    """What an earlier run of `prune` with the same identity has finished. Nothing is left where nothing was."""
    work = work_path(out, "prune")
    with tidy_parents(work):
        finished = FinishedBlocks(work, begin(work, identity))
        try:
            yield finished
        finally:
            if not finished.begun:
                finished.forget()
