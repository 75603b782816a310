"""export: a folder of the same model, its pruned linears packed or unpacked; file by file, no model is built."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.exporting.calibrate import Rounded, calibrated
from ressa.exporting.choose import chosen
from ressa.exporting.files import Weights, carry_over, weights_of, write_index, write_weights
from ressa.exporting.settings import Export
from ressa.files.folders import appear, check_output, partial
from ressa.files.text import read_json
from ressa.machine import plain, versions
from ressa.model.folder import MANIFEST, empty_model, module_names, read_manifest, refuse_adapter
from ressa.model.load import read_config, resolve
from ressa.model.quantised import is_packed
from ressa.packed.format import (
    FLOATS,
    METHOD,
    PARTS,
    SHAPE,
    VALUES,
    VERSION,
    Packed,
    check_config,
    from_integers,
    pack,
    runs,
    unpack,
)
from ressa.settings import Progress, Runtime, check_paths


def export(
    model: str | Path,
    out: str | Path,
    *,
    data: Any = None,
    settings: Export,
    runtime: Runtime,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the folder `model` to `out` in another format; what was written is read again and compared.

    Args:
        model: a model folder, or `demo`.
        out: folder to write; must not exist or be empty.
        data: what `read_records` reads, for integers whose rounding is compensated.
        progress: called with (blocks or files done, all of them, name of the next).

    Returns:
        {"export": {"linears": {name: {"shape", "kept", "bytes"}}, "left_dense": pruned linears that were not packed,
         "bytes": {"read", "written"} of all weights on disk, ...}, and what ressa.json said before}

    Raises:
        RessaError: no local folder, nothing to pack or unpack, weights that the values cannot hold, a damaged file.
    """
    started = time.perf_counter()
    check_paths("export", model=model, out=out)
    folder = Path(resolve(model))
    if not folder.is_dir():
        raise RessaError(f"{model}: is no folder on this machine; download it first, or name another")
    path = check_output(out, folder).absolute()
    refuse_adapter(model)
    before = read_manifest(folder) or {"command": "export"}
    _check_data(settings, data)
    job = _job(model, folder, settings, before)
    arguments = {"model": plain(model), "data": plain(data)} | asdict(settings) | asdict(runtime)
    if settings.calibrates:
        records = read_records(data, settings.split)
        linears = list(job.linears.values())
        job.made.update(calibrated(model, records, linears, job.runs, settings, runtime, progress))
    with partial(path) as made:
        entry = {"arguments": arguments} | job.write(made, progress)
        entry |= {"before": before["export"]} if "export" in before else {}
        entry |= {"versions": versions(), "seconds": round(time.perf_counter() - started, 2)}
        carry_over(folder, made, before | {"export": entry}, path.name)
        appear(made, path, MANIFEST)
    return before | {"export": entry}


def _check_data(settings: Export, data: Any) -> None:
    if settings.calibrates and data is None:
        raise RessaError(
            f"export: values {settings.values} are rounded so that weights make up for one another, by the inputs that "
            "records bring: name --data; or go without: --rounding nearest"
        )
    if data is not None and not settings.calibrates:
        raise RessaError("export: data has no effect: only int8 and int4 with rounding compensated look at it")


def _job(model: str | Path, folder: Path, settings: Export, manifest: dict[str, Any]) -> _Job:
    """What is to be done. Raises RessaError if nothing is, or it cannot be."""
    config = read_config(model)
    packed = is_packed(config)
    if not packed and hasattr(config, "quantization_config"):
        raise RessaError(f"{model}: its weights are quantised by another tool; name the model that it was made from")
    if packed == (settings.format == "packed"):
        hint = "--format dense unpacks it" if packed else "--format packed packs it"
        raise RessaError(f"{model}: is {settings.format} already; {hint}")
    source, net = weights_of(folder), empty_model(folder)
    if packed:
        group = check_config(config.quantization_config)
        stems = [key.removesuffix(f".{VALUES}") for key in source.where if key.endswith(f".{VALUES}")]
        names = module_names(net, [f"{stem}.{SHAPE}" for stem in stems])
        linears, left = {stem: names[f"{stem}.{SHAPE}"] for stem in stems}, list[str]()
    else:
        group = settings.group_size
        linears, left = chosen(net, source, manifest.get("matrices", {}), settings.values)
    dtype = getattr(config, "dtype", None) or torch.float32
    return _Job(source, settings, group, linears, _turned(net, linears), left, dtype)


def _turned(model: PreTrainedModel, linears: dict[str, str]) -> frozenset[str]:
    """The stems of those whose weight is kept as (I, O)."""
    modules = dict(model.named_modules())
    return frozenset(stem for stem, name in linears.items() if isinstance(modules.get(name), Conv1D))


@dataclass(frozen=True)
class _Job:
    """What is written of what is read."""

    source: Weights
    settings: Export
    group: int
    linears: dict[str, str]  # {stem of the stored names: its linear}, those to be packed or unpacked
    turned: frozenset[str]
    left: list[str]
    dtype: torch.dtype  # that integers are unpacked to
    made: dict[str, Rounded] = field(default_factory=dict)  # {linear: what calibration made of it}

    def runs(self, keep_OI: Tensor) -> Tensor:
        """How many kept weights each scale is for."""
        return runs(keep_OI.sum(1), self.settings.values, self.group)

    def write(self, out: Path, progress: Progress | None) -> dict[str, Any]:
        """Weights, their index and config.json; verified. Returns what ressa.json says of it."""
        entries: dict[str, Any] = {}
        files = self.source.files
        for done, file in enumerate(files):
            if progress:
                progress(done, len(files), file)
            write_weights(file, out, self._tensors(file, entries))
        written = write_index(out, files)
        config = read_json(self.source.folder / "config.json")
        config.pop("quantization_config", None)
        if self.settings.format == "packed":
            config["quantization_config"] = self._quantization_config()
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
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
        if self.linears[stem] in self.made:
            return from_integers(*self.made[self.linears[stem]], weight_OI != 0, self.settings.values, self.group)
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
            if (
                not self.source.tensor(key)
                .view(-1)
                .view(torch.uint8)
                .equal(written.tensor(key).view(-1).view(torch.uint8))
            ):
                raise RessaError(f"{written.folder.name}: {key} on disk is not what was read")


def _bits(weight_OI: Tensor) -> Tensor:
    """As integers; -0.0 is 0.0, for a zero is not kept."""
    return weight_OI.where(weight_OI != 0, 0).view(
        {1: torch.int8, 2: torch.int16, 4: torch.int32}[weight_OI.element_size()]
    )
