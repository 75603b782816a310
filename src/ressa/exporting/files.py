"""The safetensors of a model folder, one tensor at a time; and what stands beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ressa.errors import RessaError, one_line
from ressa.files.text import read_json
from ressa.model.folder import MANIFEST
from ressa.model.quantised import KEYS
from ressa.packed.format import PARTS, Packed, stored_as
from ressa.reporting.card import MARK, card_text
from ressa.settings import Progress

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
CARRIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".md")  # processors, tokenizers, licences
ANEW = ("config.json", INDEX, MANIFEST, "README.md", "scores.json")


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The tensors of a file. Raises RessaError if it is damaged."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise RessaError(f"{file}: damaged safetensors ({one_line(error)})") from None


@dataclass(frozen=True)
class Weights:
    """Where each tensor of a folder lies: {name: file}."""

    folder: Path
    where: Mapping[str, str]

    @property
    def files(self) -> list[str]:
        return sorted(set(self.where.values()))

    @property
    def bytes(self) -> int:
        return sum((self.folder / file).stat().st_size for file in self.files)

    def keys(self, file: str) -> list[str]:
        return [key for key, own in self.where.items() if own == file]

    def tensor(self, key: str) -> Tensor:
        with opened(self.folder / self.where[key]) as tensors:
            return tensors.get_tensor(key)

    def packed(self, stem: str, group: int) -> Packed:
        """A linear as it is stored. Raises RessaError as `stored_as`."""
        parts = [part for part in PARTS if f"{stem}.{part}" in self.where]
        return stored_as({part: self.tensor(f"{stem}.{part}") for part in parts}, group, stem)


def weights_of(folder: Path) -> Weights:
    """The weights of a folder, in one file or in several. Raises RessaError if there are none."""
    files = [ONE] if (folder / ONE).is_file() else _indexed(folder)
    if missing := next((file for file in files if not (folder / file).is_file()), None):
        raise RessaError(f"{folder}: {missing} is not there; name a model folder with all of its safetensors")
    where: dict[str, str] = {}
    for file in files:
        with opened(folder / file) as tensors:
            where |= dict.fromkeys(tensors.keys(), file)
    return Weights(folder, where)


def _indexed(folder: Path) -> list[str]:
    """The files that the index names: names in this folder, and no paths."""
    index = read_json(folder / INDEX, {})
    found = index.get("weight_map") if isinstance(index, dict) else None
    files = sorted({str(file) for file in found.values()}) if isinstance(found, dict) else []
    return [Path(file).name for file in files] or [ONE]


def write_weights(file: str, out: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """One file of weights: it stands in memory whole, and no other beside it."""
    save_file({key: tensor.contiguous() for key, tensor in tensors}, out / file, metadata={"format": "pt"})


def write_all(
    source: Weights,
    out: Path,
    tensors: Callable[[str], Iterable[tuple[str, Tensor]]],
    quantisation: Mapping[str, Any] | None,
    progress: Progress | None,
) -> Weights:
    """Weights, their index and config.json, and what was written.

    Args:
        tensors: (name, tensor) of what a file of the source becomes.
        quantisation: what config.json says of it, where it says anything.
    """
    files = source.files
    for done, file in enumerate(files):
        if progress:
            progress(done, len(files), file)
        write_weights(file, out, tensors(file))
    config = read_json(source.folder / "config.json")
    for key in KEYS:
        config.pop(key, None)
    if quantisation is not None:
        config["quantization_config"] = quantisation
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return write_index(out, files)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes, whatever they stand for."""
    return one.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))


def write_index(out: Path, files: list[str]) -> Weights:
    """The index that several files need; and what was written."""
    if files != [ONE]:
        where: dict[str, str] = {}
        for file in files:
            with opened(out / file) as tensors:
                where |= dict.fromkeys(tensors.keys(), file)
        size = sum((out / file).stat().st_size for file in files)
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return weights_of(out)


def carry_over(folder: Path, out: Path, manifest: Mapping[str, Any], name: str) -> None:
    """What stands beside the weights, as it is; a model card that ressa wrote is written anew. ressa.json is last."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file.is_file() and file.suffix in CARRIED and str(inside) not in ANEW and not hidden:
            (out / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / inside)
    card = folder / "README.md"
    if card.is_file() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        shutil.copyfile(card, out / "README.md")
    elif "arguments" in manifest:
        (out / "README.md").write_text(card_text(manifest, out, name), encoding="utf-8")
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
