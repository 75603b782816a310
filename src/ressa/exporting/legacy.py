"""Folders in the formats `sparse-bitmask` and `sparse-24-bitmask` of compressed-tensors up to 0.14, read as dense ones.

Of a weight `X.weight` they hold `X.shape`; `X.compressed`, what is kept in row-major order; and `X.bitmask`, bits of
eight neighbours to a byte, the first lowest. (`X.row_offsets`, where each row begins, follows from the bitmask.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ressa.errors import RessaError
from ressa.exporting.files import Weights, same_bytes, write_all
from ressa.model.folder import module_names
from ressa.settings import Progress

SHAPE, KEPT, BITS, OFFSETS = PARTS = "shape", "compressed", "bitmask", "row_offsets"
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class LegacyJob:
    """What is written of such a folder."""

    source: Weights
    model: PreTrainedModel  # without weights

    @cached_property
    def stems(self) -> set[str]:
        """X of every weight that is not stored as it is."""
        return {key.removesuffix(f".{KEPT}") for key in self.source.where if key.endswith(f".{KEPT}")}

    def write(self, out: Path, progress: Progress | None) -> dict[str, Any]:
        """Weights, their index and config.json; verified. Returns what ressa.json says of it.

        Raises:
            RessaError: tensors that contradict one another, or a disk on which something else lies than was written.
        """
        names = module_names(self.model, [f"{stem}.weight" for stem in self.stems])
        entries: dict[str, Any] = {}
        written = write_all(self.source, out, lambda file: self._tensors(file, names, entries), None, progress)
        for key in written.where:
            stem = key.removesuffix(".weight")
            was = self._dense(stem) if stem in self.stems and key != stem else self.source.tensor(key)
            if not same_bytes(was, written.tensor(key)):
                raise RessaError(f"{out.name}: {key} on disk is not what was read; is the disk full?")
        sizes = {"read": self.source.bytes, "written": written.bytes}
        return {"format": "dense", "linears": entries, "left_dense": [], "bytes": sizes}

    def _tensors(self, file: str, names: Mapping[str, str], entries: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for key in self.source.keys(file):
            stem, _, part = key.rpartition(".")
            if stem not in self.stems or part not in PARTS:
                yield key, self.source.tensor(key)
            elif part == KEPT:
                weight = self._dense(stem)
                read = sum(self.source.tensor(f"{stem}.{own}").nbytes for own in (KEPT, BITS))
                kept = int((weight != 0).sum())
                entries[names[f"{stem}.weight"]] = {"shape": list(weight.shape), "kept": kept, "bytes": read}
                yield f"{stem}.weight", weight

    def _dense(self, stem: str) -> Tensor:
        """The weight. Raises RessaError if what is stored of it contradicts itself."""
        if missing := [part for part in (SHAPE, BITS) if f"{stem}.{part}" not in self.source.where]:
            raise RessaError(f"{stem}: has {KEPT} and no {missing[0]}; the file is damaged")
        shape, kept, bits = (self.source.tensor(f"{stem}.{part}") for part in (SHAPE, KEPT, BITS))
        return dense(stem, [int(side) for side in shape.flatten()], kept, bits)


def dense(name: str, shape: list[int], kept: Tensor, bits: Tensor) -> Tensor:
    """The weight of this `shape`, with `kept` where `bits` (..., ceil(last side / 8)) are set and 0 elsewhere.

    Raises:
        RessaError: naming it, if lengths, dtypes and bits do not agree.
    """

    def unless(right: bool, what: str) -> None:
        if not right:
            raise RessaError(f"{name}: {what}; the file is damaged")

    unless(kept.dtype in FLOATS, f"its weights are {str(kept.dtype).removeprefix('torch.')}, which ressa does not read")
    unless(bool(shape) and min(shape, default=0) > 0, f"a weight of {shape} cannot be")
    wanted = [*shape[:-1], -(-shape[-1] // 8)]
    unless(bits.dtype == torch.uint8 and list(bits.shape) == wanted, f"its bitmask does not belong to {shape}")
    places = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)).bitwise_and_(1).bool().flatten(-2)
    unless(not places[..., shape[-1] :].any(), "its bitmask has bits behind the last column")
    mask = places[..., : shape[-1]]
    unless(int(mask.sum()) == kept.numel(), f"{kept.numel()} weights are stored and its bits ask for {int(mask.sum())}")
    return torch.zeros(shape, dtype=kept.dtype).masked_scatter_(mask, kept.flatten())
