"""What lies in a model folder, without its model: ressa.json, sizes, and zeros counted from the safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ressa.demo import CARRIED
from ressa.errors import RessaError, printable
from ressa.files.text import read_json

BLOCK = re.compile(r"(.*?)\.(\d+)\.(.*)")  # stem, number of the block, matrix in it
BITMASK = ".weight_bitmask"  # of a packed folder: no matrix
PLAIN = ("model", "encoder", "decoder", "layers", "layer", "block")  # what tells nothing in the name of a block


@dataclass(frozen=True)
class Count:
    """Zeros of one stored matrix."""

    shape: tuple[int, ...]
    zeros: int
    bytes: int  # as stored

    @property
    def weights(self) -> int:
        return prod(self.shape)


def block_name(name: str) -> str:
    """model.vision_tower.encoder.layers.3 is vision_tower 3."""
    return printable(" ".join(piece for piece in name.split(".") if piece not in PLAIN))


def folder_of(model: str | Path) -> Path:
    """The folder that a model's name stands for; it need not exist (a name on the hub)."""
    return Path(CARRIED.get(str(model), model))


def manifest_of(folder: Path) -> dict[str, Any]:
    """What ressa.json says, {} without one. Raises RessaError if it is not a JSON object."""
    return read_object(folder / "ressa.json")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object, {} if there is no file. Raises RessaError if it holds anything else."""
    content = read_json(path, {})
    if not isinstance(content, dict):
        raise RessaError(f"{path}: is not an object in braces; was it written by ressa?")
    return content


def size_of(folder: Path) -> int:
    """Bytes of weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def counts(folder: Path) -> dict[str, Count]:
    """The zeros of every stored tensor of more than one dimension, one in memory at a time; tied ones come once.

    Raises:
        RessaError: a file that is not safetensors, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a dict)
                    if len(shape := tensors.get_slice(key).get_shape()) > 1 and not key.endswith(BITMASK):
                        weight = tensors.get_tensor(key)
                        zeros = weight.numel() - int(weight.count_nonzero())
                        found[key.removesuffix(".weight")] = Count(tuple(shape), zeros, weight.nbytes)
        except (SafetensorError, OSError) as error:
            raise RessaError(f"{file}: damaged safetensors ({error})") from None
    return found


def matched(names: Mapping[str, int], stored: Mapping[str, Count]) -> dict[str, Count]:
    """The stored matrix of each of `names` ({module in the loaded model: its weights}); {} where one is not found.

    Many families keep older names on disk. Blocks are told by their numbers: a stack of blocks in memory is the stack
    on disk that has the same matrices of the same sizes under the same numbers, and most of its name.
    """
    wanted = _stacks(names)
    held = _stacks({name: count.weights for name, count in stored.items()})
    found: dict[str, Count] = {}
    for stem, members in wanted.items():
        fit = [other for other, theirs in held.items() if members.items() <= theirs.items()]
        if not fit:
            return {}
        best = max(fit, key=lambda other: _alike(stem, other))
        found |= {_joined(stem, key): stored[_joined(best, key)] for key in members}
    return found


def _stacks(names: Mapping[str, int]) -> dict[str, dict[tuple[str, ...], int]]:
    """{stem: {(number, matrix): weights}}; what is in no block is a stack of its own."""
    stacks: dict[str, dict[tuple[str, ...], int]] = {}
    for name, weights in names.items():
        cut = BLOCK.fullmatch(name)
        stem, key = (cut[1], (cut[2], cut[3])) if cut else (name, ())
        stacks.setdefault(stem, {})[key] = weights
    return stacks


def _joined(stem: str, key: tuple[str, ...]) -> str:
    return ".".join([stem, *key])


def _alike(one: str, other: str) -> tuple[int, bool]:
    """How many parts two dotted names share, and whether they end alike."""
    ours, theirs = one.split("."), other.split(".")
    return len(set(ours) & set(theirs)), ours[-1] == theirs[-1]
