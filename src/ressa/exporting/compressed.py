"""Folders as the compressed-tensors library writes them: W8A8 and W4A16, symmetric, with every zero in its place.

int8: `X.weight` (O, I) int8 and `X.weight_scale` (O, 1), inputs rounded token by token as they come. int4:
`X.weight_packed` (O, I / 8) int32, eight neighbours to a word, the first lowest, each 8 above its value;
`X.weight_scale` (O, I / group) and `X.weight_shape`. Read in compressed-tensors 0.20, `compressors/naive_quantized` and
`compressors/pack_quantized`; nothing of the library is needed to write them.

Shapes: O outputs, I inputs, N kept weights, S scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ressa.errors import RessaError
from ressa.exporting.calibrate import Grid, Rounded
from ressa.exporting.files import Weights, same_bytes, write_all
from ressa.exporting.settings import COMPRESSED, Export
from ressa.model.structure import structure
from ressa.packed.format import nearest
from ressa.settings import Progress

FORMATS = {"int8": "int-quantized", "int4": "pack-quantized"}
SHIFTS = torch.arange(0, 32, 4, dtype=torch.int32)  # of eight neighbours in a word


def compressed_job(
    source: Weights,
    model: PreTrainedModel,
    settings: Export,
    linears: dict[str, str],
    left: list[str],
    dtype: torch.dtype,
) -> CompressedJob:
    """What is to be written. Raises RessaError if no linear fits the format.

    Of the language model alone: vision towers and connectors stay dense, as in the recipes of the library. Servers do
    not read them otherwise, and transformers 5.23 ends in an error where SigLIP's linears are in 4 bits.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    language = {name for block in structure(model).blocks() if block.part == "language" for name in block.linears}
    step = math.lcm(settings.group_size, 8) if settings.values == "int4" else 1

    def fits(name: str) -> bool:
        return name in language and name in modules and modules[name].in_features % step == 0

    fit = {stem: name for stem, name in linears.items() if fits(name)}
    if not fit:
        raise RessaError(
            f"{source.folder}: no linear of its language model whose inputs are a multiple of {step} is to be rounded"
            + (": take another --group-size" if step > 1 else "")
        )
    left = [*left, *(name for name in linears.values() if not fits(name))]
    ignore = [name for name in modules if name not in set(fit.values())]
    return CompressedJob(source, settings, fit, left, ignore, dtype)


@dataclass(frozen=True)
class CompressedJob:
    """What is written of what is read."""

    source: Weights
    settings: Export
    linears: dict[str, str]  # {stem of the stored names: its linear}, those that are rounded
    left: list[str]
    ignore: list[str]  # all other linears
    dtype: torch.dtype  # of scales: what the library makes of a weight has it too
    made: dict[str, Rounded] = field(default_factory=dict)  # {linear: what calibration made of it}

    @property
    def grid(self) -> Grid:
        """Which integers, of all weights, zeros too."""

        def lay(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
            rows, columns = weight_OI.shape
            group = self.settings.group_size if self.settings.values == "int4" else columns
            runs_S = torch.full((rows * (columns // group),), group, device=weight_OI.device)
            return torch.ones_like(weight_OI, dtype=torch.bool), runs_S

        return Grid(self.settings.values, lay, self.dtype)

    def write(self, out: Path, progress: Progress | None) -> dict[str, Any]:
        """Weights, their index and config.json; verified. Returns what ressa.json says of it."""
        entries: dict[str, Any] = {}
        config = self._quantization_config()
        written = write_all(self.source, out, lambda file: self._tensors(file, entries), config, progress)
        self._verify(written)
        sizes = {"read": self.source.bytes, "written": written.bytes}
        return {"format": COMPRESSED, "linears": entries, "left_dense": self.left, "bytes": sizes}

    def _quantization_config(self) -> dict[str, Any]:
        bits = {"int8": 8, "int4": 4}[self.settings.values]
        weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
        if bits == 8:
            weights |= {"strategy": "channel"}
        else:
            weights |= {"strategy": "group", "group_size": self.settings.group_size}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs if bits == 8 else None}
        return {
            "quant_method": COMPRESSED,
            "format": FORMATS[self.settings.values],
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": self.ignore,
        }

    def _tensors(self, file: str, entries: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for key in self.source.keys(file):
            stem, _, part = key.rpartition(".")
            if stem not in self.linears or part != "weight":
                yield key, self.source.tensor(key)
                continue
            weight_OI = self.source.tensor(key)
            stored = self._stored(stem, weight_OI)
            yield from ((f"{stem}.{name}", tensor) for name, tensor in stored.items())
            size = sum(tensor.nbytes for tensor in stored.values())
            kept = int((weight_OI != 0).sum())
            entries[self.linears[stem]] = {"shape": list(weight_OI.shape), "kept": kept, "bytes": size}

    def _stored(self, stem: str, weight_OI: Tensor) -> dict[str, Tensor]:
        """What is stored of a linear, by the last part of each name."""
        integers_N, scale_S = self.made.get(self.linears[stem]) or self._nearest(stem, weight_OI)
        integers_OI = integers_N.view(weight_OI.shape)
        scale_OG = scale_S.where(scale_S > 0, 1).view(len(weight_OI), -1)  # 0 where all are zeros: nobody divides by it
        if self.settings.values == "int8":
            return {"weight": integers_OI, "weight_scale": scale_OG}
        words = ((integers_OI.int() + 8).unflatten(1, (-1, 8)) << SHIFTS).sum(2, dtype=torch.int32)
        return {"weight_packed": words, "weight_scale": scale_OG, "weight_shape": torch.tensor(weight_OI.shape)}

    def _nearest(self, stem: str, weight_OI: Tensor) -> Rounded:
        _, runs_S = self.grid.lay(weight_OI)
        try:
            return nearest(weight_OI.flatten(), runs_S, self.settings.values, self.dtype)
        except RessaError as error:
            raise RessaError(f"{self.linears[stem]}: {error}") from None

    def _verify(self, written: Weights) -> None:
        """Raises RessaError if what lies on the disk has another zero than what was read, or anything else is not as
        it was."""
        for stem, name in self.linears.items():
            zeros_OI = self.source.tensor(f"{stem}.weight") == 0
            if self.settings.values == "int8":
                integers_OI = written.tensor(f"{stem}.weight")
            else:
                words = written.tensor(f"{stem}.weight_packed")
                integers_OI = ((words.unsqueeze(2) >> SHIFTS).bitwise_and_(15) - 8).flatten(1)
            finite = bool(written.tensor(f"{stem}.weight_scale").isfinite().all())
            if not finite or integers_OI[zeros_OI].any():
                raise RessaError(f"{written.folder.name}: {name} on disk has not the zeros that were read")
        for key in self.source.where.keys() - {f"{stem}.weight" for stem in self.linears}:
            if not same_bytes(self.source.tensor(key), written.tensor(key)):
                raise RessaError(f"{written.folder.name}: {key} on disk is not what was read")
