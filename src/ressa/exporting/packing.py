"""A folder whose linears are packed, or unpacked, from file to file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ressa.errors import RessaError
from ressa.exporting.calibrate import Grid, Rounded
from ressa.exporting.files import Weights, same_bytes, write_all
from ressa.exporting.settings import Export
from ressa.packed.format import (
    FLOATS,
    METHOD,
    PARTS,
    SHAPE,
    VALUES,
    VERSION,
    Packed,
    from_integers,
    kept_places,
    pack,
    runs,
    unpack,
)
from ressa.settings import Progress


@dataclass(frozen=True)
class PackingJob:
    """What is written of what is read."""

    source: Weights
    settings: Export
    group: int
    linears: dict[str, str]  # {stem of the stored names: its linear}, those to be packed or unpacked
    turned: frozenset[str]
    left: list[str]
    dtype: torch.dtype  # that integers are unpacked to
    made: dict[str, Rounded] = field(default_factory=dict)  # {linear: what calibration made of it}

    @property
    def grid(self) -> Grid:
        """Which integers, for calibration."""
        kind = self.settings.values

        def lay(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
            keep_OI = kept_places(weight_OI, kind)
            return keep_OI, runs(keep_OI.sum(1), kind, self.group)

        return Grid(kind, lay)

    def write(self, out: Path, progress: Progress | None) -> dict[str, Any]:
        """Weights, their index and config.json; verified. Returns what ressa.json says of it."""
        entries: dict[str, Any] = {}
        config = self._quantization_config() if self.settings.format == "packed" else None
        written = write_all(self.source, out, lambda file: self._tensors(file, entries), config, progress)
        self._verify(written)
        sizes = {"read": self.source.bytes, "written": written.bytes}
        return {"format": self.settings.format, "linears": entries, "left_dense": self.left, "bytes": sizes}

    def _quantization_config(self) -> dict[str, Any]:
        config = {"quant_method": METHOD, "version": VERSION, "values": self.settings.values}
        return config | ({"group_size": self.group} if self.settings.values == "int4" else {})

    def _tensors(self, file: str, entries: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of what `file` becomes; what is packed stands where its `weight` stood, or its shape."""
        for key in self.source.keys(file):
            stem, _, part = key.rpartition(".")
            if stem not in self.linears or part == "bias":
                yield key, self.source.tensor(key)
            elif part == SHAPE:
                weight_OI = self._dense(self.source, stem)
                packed = self._packed(stem, weight_OI)
                kept = int((weight_OI != 0).sum())
                entries[self.linears[stem]] = {"shape": list(packed.shape), "kept": kept, "bytes": packed.bytes}
                if self.settings.format == "packed":
                    yield from ((f"{stem}.{name}", tensor) for name, tensor in packed.tensors().items())
                else:
                    yield key, weight_OI.T if stem in self.turned else weight_OI

    def _dense(self, where: Weights, stem: str) -> Tensor:
        """The weight (O, I) of a linear of the source or of what was written, whichever way it lies there."""
        if f"{stem}.{VALUES}" in where.where:
            packed = where.packed(stem, self.group)
            dtype = packed.values.dtype if packed.kind in FLOATS else self.dtype
            return unpack(packed, torch.empty(packed.shape, dtype=dtype))
        weight = where.tensor(f"{stem}.{SHAPE}")
        return weight.T.contiguous() if stem in self.turned else weight

    def _packed(self, stem: str, weight_OI: Tensor) -> Packed:
        if self.settings.format == "dense":
            return self.source.packed(stem, self.group)
        if made := self.made.get(self.linears[stem]):
            kind = self.settings.values
            return from_integers(*made, kept_places(weight_OI, kind), kind, self.group)
        try:
            return pack(weight_OI, self.settings.values, self.group)
        except RessaError as error:
            raise RessaError(f"{self.linears[stem]}: {error}") from None

    def _verify(self, written: Weights) -> None:
        """Raises RessaError if what lies on the disk is not what was read, zero for zero and, if asked, bit for bit."""
        for stem, name in self.linears.items():
            was_OI, is_OI = self._dense(self.source, stem), self._dense(written, stem)
            same = self.settings.values != "same" or _bits(was_OI).equal(_bits(is_OI))
            if not same or (is_OI[was_OI == 0] != 0).any():
                raise RessaError(f"{written.folder.name}: {name} on disk is not what was read; is the disk full?")
        own = {f"{stem}.{part}" for stem in self.linears for part in PARTS}
        for key in self.source.where.keys() - own:
            if not same_bytes(self.source.tensor(key), written.tensor(key)):
                raise RessaError(f"{written.folder.name}: {key} on disk is not what was read")


def _bits(weight_OI: Tensor) -> Tensor:
    """As integers; -0.0 is 0.0, for a zero is not kept."""
    return weight_OI.where(weight_OI != 0, 0).view(
        {1: torch.int8, 2: torch.int16, 4: torch.int32}[weight_OI.element_size()]
    )
