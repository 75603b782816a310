"""How a stopped run goes on: what it has finished lies in a hidden folder beside its output, with what it was about."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.folders import tidy_parents
from ressa.model.load import resolve
from ressa.model.structure import Block
from ressa.provenance import versions


def work_folder(out: Path, what: str, identity: dict[str, Any]) -> Path:
    """The hidden folder beside `out`; emptied unless a run with the same identity and versions made it."""
    work = out.absolute().parent / f".{out.name}.{what}"
    note, text = work / "arguments.json", json.dumps(identity | {"versions": versions("peft")}, indent=1)
    if not note.is_file() or note.read_text(encoding="utf-8") != text:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        note.write_text(text, encoding="utf-8")
    return work


def stamp(name: str | Path) -> list[Any]:
    """Names, sizes and times of a model's files; a hub name stands for itself."""
    folder = Path(resolve(name))
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json"))
    return [str(name), *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def digest_of(records: list[Record]) -> str:
    """What tells whether two lists of records are the same."""
    digest = hashlib.sha256()
    for record in records:
        image = record.image.identity() if record.image else None
        digest.update(repr((record.id, record.question, record.prefix, record.references, image)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class FinishedBlocks:
    """The pruned weights of blocks, a file each in `folder`."""

    folder: Path

    def has(self, block: Block) -> bool:
        return self._file(block).is_file()

    @torch.no_grad()
    def put_back(self, block: Block) -> None:
        saved = load_file(self._file(block))
        for name, linear in block.linears.items():
            linear.weight.copy_(saved[name])

    def keep(self, block: Block) -> None:
        """The file appears whole or not at all."""
        partial = self.folder / "block.partial"
        clone = {"memory_format": torch.contiguous_format}  # experts are views, weights of Conv1D transposed ones
        save_file({name: linear.weight.detach().clone(**clone) for name, linear in block.linears.items()}, partial)
        partial.replace(self._file(block))

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, block: Block) -> Path:
        return self.folder / f"{block.name}.safetensors"


@contextmanager
def finished_blocks(out: Path, identity: dict[str, Any]) -> Iterator[FinishedBlocks]:
    """What an earlier run of `prune` with the same identity has finished. Gone if the run is refused, for good."""
    with tidy_parents(out.absolute()):
        finished = FinishedBlocks(work_folder(out, "prune", identity))
        try:
            yield finished
        except RessaError:
            finished.forget()
            raise
