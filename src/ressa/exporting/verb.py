"""export: a folder of the same model in another format, file by file."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.exporting.calibrate import calibrated
from ressa.exporting.choose import chosen
from ressa.exporting.compressed import CompressedJob, compressed_job
from ressa.exporting.files import carry_over, weights_of
from ressa.exporting.legacy import LegacyJob
from ressa.exporting.packing import PackingJob
from ressa.exporting.settings import COMPRESSED, Export
from ressa.files.folders import appear, check_output, partial
from ressa.machine import plain, versions
from ressa.model.folder import MANIFEST, empty_model, module_names, read_manifest, refuse_adapter
from ressa.model.load import read_config, resolve
from ressa.model.quantised import is_packed, legacy
from ressa.packed.format import SHAPE, VALUES, check_config
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
    if settings.calibrates and not isinstance(job, LegacyJob):
        records, linears = read_records(data, settings.split), list(job.linears.values())
        job.made.update(calibrated(model, path, records, linears, job.grid, settings, runtime, progress))
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


def _job(
    model: str | Path, folder: Path, settings: Export, manifest: dict[str, Any]
) -> PackingJob | CompressedJob | LegacyJob:
    """What is to be done. Raises RessaError if nothing is, or it cannot be."""
    config = read_config(model)
    packed, old = is_packed(config), legacy(config)
    if old and settings.format != "dense":
        raise RessaError(f"{model}: is in the format {old}; write it as a dense folder first: --format dense")
    if old:
        return LegacyJob(weights_of(folder), empty_model(folder))
    if not packed and hasattr(config, "quantization_config"):
        raise RessaError(f"{model}: its weights are quantised by another tool; name the model that it was made from")
    if packed and settings.format == COMPRESSED:
        raise RessaError(f"{model}: is packed; unpack it first: ressa export {model} OUT --format dense")
    if settings.format == ("packed" if packed else "dense"):
        hint = "--format dense unpacks it" if packed else "--format packed packs it"
        raise RessaError(f"{model}: is {settings.format} already; {hint}")
    source, net = weights_of(folder), empty_model(folder)
    dtype = getattr(config, "dtype", None) or torch.float32
    if packed:
        group = check_config(config.quantization_config)
        stems = [key.removesuffix(f".{VALUES}") for key in source.where if key.endswith(f".{VALUES}")]
        names = module_names(net, [f"{stem}.{SHAPE}" for stem in stems])
        linears = {stem: names[f"{stem}.{SHAPE}"] for stem in stems}
        return PackingJob(source, settings, group, linears, _turned(net, linears), [], dtype)
    linears, left = chosen(net, source, manifest.get("matrices", {}), settings.values)
    if settings.format == COMPRESSED:
        return compressed_job(source, net, settings, linears, left, dtype)
    return PackingJob(source, settings, settings.group_size, linears, _turned(net, linears), left, dtype)


def _turned(model: PreTrainedModel, linears: dict[str, str]) -> frozenset[str]:
    """The stems of those whose weight is kept as (I, O)."""
    modules = dict(model.named_modules())
    return frozenset(stem for stem, name in linears.items() if isinstance(modules.get(name), Conv1D))
