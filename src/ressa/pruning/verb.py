"""prune: a dense model folder in, a folder of the same model with zeros out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ressa import methods
from ressa.allocation.file import read_allocation
from ressa.calibration.data import CalibrationData
from ressa.calibration.resume import digest_of, finished_blocks, stamp
from ressa.calibration.samples import drawn
from ressa.calibration.tokens import check_counts
from ressa.calibration.walk import Progress
from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.limits import check, check_paths
from ressa.machine import Machine, check_machine, forget_peak, peak_memory, plain, versions
from ressa.model.folder import check_output, refuse_adapter, write_folder
from ressa.model.load import auto_class, load, machine_for, read_config, resolve
from ressa.model.precision import cast_back, dtypes_of
from ressa.model.structure import Block, Structure, structure
from ressa.patterns import Pattern, Unstructured, parse
from ressa.pruning.assign import allot
from ressa.pruning.blocks import by_inputs, by_weights, prune_block
from ressa.pruning.request import Request, Sparsity
from ressa.settings import Prune


def prune(
    model: str | Path,
    out: str | Path,
    *,
    data: Any = None,
    method: str = "admm",
    sparsity: Sparsity = "2:4",
    vision: Sparsity | None = None,
    connector: Sparsity | None = None,
    language: Sparsity | None = None,
    total: Sparsity | None = None,
    allocation: str | Path = "uniform",
    budget: str | None = None,
    spread: float | None = None,
    keep_dense: int = 0,
    samples: int = 128,
    batch_size: int = 8,
    seed: int = 0,
    propagate: str = "sequential",
    order: str = "block",
    asymmetric: float = 0.0,
    damp: float | None = None,
    token_weights: Mapping[str, float] | None = None,
    patch_embedding: bool = False,
    split: str = "train",
    group: str | None = None,
    device: torch.device | str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prunes `model` and writes it, with its processor and ressa.json, to `out`. Returns what stands in ressa.json.

    A run that was stopped goes on at its first unfinished block when it is called again with the same arguments; it
    keeps finished ones in a hidden folder beside `out`, which goes when `out` is written.

    Args:
        model: a model folder, a hub name, or `demo`.
        out: folder to write; must not exist or be empty.
        data: what `read_records` reads; methods that look at weights alone need none.
        method: one of `ressa.methods.METHODS`, or one with "+refit".
        sparsity: of vision and language: "2:4" keeps 2 of every 4 neighbouring inputs, "50%" or 0.5 makes half zero.
        vision, connector, language: the same for one part; "0" leaves it out, as it does the connector unless told.
        total: a share of all weights of vision and language; the one of them that is not told makes up for the other.
        allocation: how a part's zeros are shared out over its blocks (`ressa.allocation`), or a file that says it.
        budget: "part": each part keeps its own zeros; "model": they are shared out over all parts.
        spread: how far apart OWL, DLP and ECoFLaP may set blocks.
        keep_dense: so many blocks, the most sensitive ones, are not pruned.
        samples, batch_size, seed, split: how many records are drawn from which split, and in what batches they run.
        propagate: "sequential": a block's inputs come from pruned blocks; "dense": from blocks as they were.
        order: "block": all linears of a block from one gathering of inputs; "layer": those that read the same input
            are pruned before the next ones' inputs are gathered.
        asymmetric: 0 to 1: how much of the way weights are first moved to make up, on the pruned prefix's inputs, for
            what the blocks before lost. Holds a second copy of the model.
        damp: of the Gram's diagonal, as a share; see each method.
        token_weights: how much "image", "text" and "answer" tokens count (1 each); padding never counts.
        group: what competes in an unstructured pattern, "row" or "matrix" (by default matrices in vision, else rows);
            with magnitude also all matrices of a "part" or of the "model".
        patch_embedding: whether the convolution that cuts pictures into patches is pruned with the vision tower.
        device, dtype: as in `ressa.settings.Runtime`; blocks move to a device other than the CPU one at a time.
        progress: called with (blocks done, blocks in all, name of the next).

    Raises:
        RessaError: one line; before weights are loaded where that is possible. Nothing is written then.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("out", "progress")}
    started = time.perf_counter()
    forget_peak()
    check_paths("prune", model=model, out=out)
    check(Prune, arguments, "prune")
    check_machine(device, dtype)
    arguments = {name: plain(value) for name, value in arguments.items()}
    run = methods.get(method, seed=seed, damp=damp)
    methods.check_moving(method, asymmetric)
    request = Request.of(arguments)
    saved = read_allocation(allocation) if request.from_file else None
    counts = check_counts(token_weights)
    if run.needs and data is None:
        raise RessaError(f"method '{method}' looks at the inputs of layers: name the data to calibrate on")
    if request.needs_data and data is None:
        raise RessaError(f"allocation '{allocation}' looks at how blocks are used: name the data to calibrate on")
    out = check_output(out, resolve(model))
    refuse_adapter(model)
    _check_parts(model, vision, connector)
    records = None if data is None else read_records(data, split)

    net, processor = load(model)
    chosen, dtypes = machine_for(net, device, dtype), dtypes_of(net)
    if chosen.working != chosen.stored:
        net.float()
    plan = structure(net, patch_embedding=patch_embedding)
    where: dict[str, Any] = {"device": chosen.block_device, "autocast": chosen.autocast, "progress": progress}
    data = CalibrationData(net, processor, records, samples, batch_size, seed, counts, **where)
    patterns, allotted = allot(request, saved, plan, data, run, partial(prune_block, run))
    blocks = [
        block
        for block in plan.blocks()
        if any(patterns[name].sparsity for name in block.linears.keys() & patterns.keys())
    ]
    finished, resumed = None, 0
    if run.needs is None:
        by_weights(run, blocks, patterns, progress)
    else:
        with finished_blocks(out, _identity(arguments, chosen, records or [], patterns)) as finished:
            resumed = by_inputs(run, data, blocks, patterns, propagate, order, asymmetric, finished)
    cast_back(net, dtypes, [name for name, pattern in patterns.items() if pattern.sparsity])
    manifest = _manifest(arguments, chosen, plan, patterns, allotted, time.perf_counter() - started)
    manifest["pictures"] = data.seen
    if resumed:
        manifest["resumed_blocks"] = resumed  # what they took is not in the seconds
    write_folder(out, net, processor, manifest, patterns=patterns)
    if finished:
        finished.forget()
    return manifest


def _identity(
    arguments: dict[str, Any], chosen: Machine, records: list[Record], patterns: Mapping[str, Pattern]
) -> dict[str, Any]:
    """What a stopped run was about: only the same one goes on with its blocks."""
    data = digest_of(drawn(records, arguments["samples"], arguments["seed"]))
    spelled = {name: repr(pattern) for name, pattern in patterns.items()}
    about = {"arguments": arguments, "compute": str(chosen.compute), "model": stamp(arguments["model"])}
    return about | {"data": data, "patterns": spelled}


def _check_parts(model: str | Path, vision: Sparsity | None, connector: Sparsity | None) -> None:
    """Raises RessaError if a part is asked of a model whose config says that it has none. Loads no weights."""
    if auto_class(read_config(model), model) is not AutoModelForCausalLM:
        return
    for part, asked in (("vision", vision), ("connector", connector)):
        if asked is not None and parse(asked).sparsity:
            raise RessaError(f"{model} is a text-only model: it has no {part} to prune, leave --{part} out")


def _manifest(
    arguments: dict[str, Any],
    chosen: Machine,
    plan: Structure,
    patterns: dict[str, Pattern],
    allotted: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """What ressa.json says: the request, what it ran on, and what came of it, per matrix and per part."""
    matrices: dict[str, dict[str, Any]] = {}
    parts: dict[str, dict[str, Any]] = {}
    for part in plan.parts.values():
        own = {
            name: _matrix(linear.weight, block, patterns[name])
            for block in part.blocks
            for name, linear in block.linears.items()
            if name in patterns
        }
        matrices |= own
        zeros, weights = (sum(entry[key] for entry in own.values()) for key in ("zeros", "weights"))
        counts = {"parameters": part.parameters, "matrices": len(own), "weights": weights, "zeros": zeros}
        parts[part.name] = counts | {"sparsity": zeros / weights if weights else 0.0}
    zeros, weights = (sum(entry[key] for entry in parts.values()) for key in ("zeros", "weights"))
    weights = sum(allotted.get("weights", {}).values()) or weights  # of a total, a dense part has a share too
    return {
        "command": "prune",
        "arguments": arguments,
        "seed": arguments["seed"],
        "versions": versions(),
        "machine": chosen.describe(),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory(),
        "allocation": allotted,
        "together": {"weights": weights, "zeros": zeros, "sparsity": zeros / weights},
        "parts": parts,
        "matrices": matrices,
    }


def _matrix(weight_OI: torch.Tensor, block: Block, pattern: Pattern) -> dict[str, Any]:
    zeros, weights = int((weight_OI == 0).sum()), weight_OI.numel()
    entry = {"part": block.part, "pattern": str(pattern), "shape": list(weight_OI.shape)}
    if isinstance(pattern, Unstructured):
        entry["group"] = pattern.group
    return entry | {"weights": weights, "zeros": zeros, "sparsity": zeros / weights}
