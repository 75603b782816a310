"""prune: a dense model folder in, a folder of the same model with zeros out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ressa import methods, parallel
from ressa.allocation.file import Saved, read_allocation
from ressa.calibration.data import CalibrationData
from ressa.calibration.resume import LEFT, FinishedBlocks, digest_of, finished_blocks, stamp
from ressa.calibration.samples import drawn
from ressa.calibration.sweep import SweepSettings, sweep
from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.files.folders import nearest, writing
from ressa.files.text import to_bytes
from ressa.machine import Machine, check_machine, forget_peak, peak_memory, plain, versions
from ressa.model.folder import Zeros, check_output, complete_folder, refuse_adapter, refuse_packed
from ressa.model.load import auto_class, machine_for, read_config, resolve
from ressa.model.precision import cast_back, dtypes_of
from ressa.model.shards import Shards
from ressa.model.streamed import load_streamed
from ressa.model.structure import Block, Structure, structure
from ressa.patterns import Pattern, Unstructured, parse
from ressa.pruning.assign import assign_patterns
from ressa.pruning.blocks import prune_block
from ressa.pruning.request import Request
from ressa.pruning.settings import Prune
from ressa.settings import Progress, Runtime, check_paths
from ressa.statistics import Method


def prune(
    model: str | Path,
    out: str | Path,
    *,
    data: Any = None,
    settings: Prune,
    runtime: Runtime,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prunes `model` and writes it, with its processor and ressa.json, to `out`. Returns what stands in ressa.json.

    A model larger than memory is pruned block by block: what is outside of its blocks is read once, each block when it
    is its turn, and written into the output's own files. These are filled in a hidden folder beside `out`, which
    becomes `out`. A run that was stopped goes on there when it is called again with the same arguments.

    Of several processes (`accelerate launch`, `torchrun`) each takes a share of the batches and of the linears; the
    first one writes. All return the same, and fail with the same line if one fails.

    Args:
        model: a model folder, a hub name, or `demo`.
        out: folder to write; must not exist or be empty.
        data: what `read_records` reads; methods that look at weights alone need none.
        progress: called with (blocks done, blocks in all, name of the next).

    Raises:
        RessaError: one line; before weights are loaded where that is possible. Nothing is written then.
    """
    started = time.perf_counter()
    forget_peak()
    check_paths("prune", model=model, out=out)
    check_machine(parallel.device_of(runtime.device), runtime.dtype, runtime.threads)
    with parallel.together(runtime.device) as team:
        request = Request(settings)
        method = methods.get(settings.method, seed=settings.seed, shrinkage=settings.shrinkage, damp=settings.damp)
        out, saved, records = _checked(request, method, model, out, data)
        chosen, calibration, plan, dtypes = _loaded(model, out, records, request, method, runtime, progress)
        patterns, allotted = assign_patterns(request, saved, plan, calibration, method)
        arguments = {"model": plain(model), "data": plain(data)} | asdict(settings) | asdict(runtime)
        identity = _identity(arguments, chosen, records or [], patterns)
        _check_alike(settings, identity)
        pruned = {name for name, pattern in patterns.items() if pattern.sparsity}
        with finished_blocks(out, identity) as work:
            finished, blocks = _output(work, out, calibration, settings, dtypes, pruned)
            resumed = sum(map(finished.has, blocks))  # what they took is not in the seconds
            how = SweepSettings(settings.propagate, settings.order, settings.asymmetric)
            for turn in sweep(calibration.over(blocks), method.needs, how, pruned, finished):
                prune_block(method, turn.block, turn.inputs, patterns, turn.linears)
                turn.share()
            told = partial(_manifest, arguments, chosen, plan, patterns, allotted, time.perf_counter() - started)
            more = {"pictures": calibration.seen} | ({"resumed_blocks": resumed} if resumed else {})
            made = {} if team.rank else _completed(work, out, calibration, finished, patterns, lambda z: told(z) | more)
            return team.exchange(made)[0]


def _checked(
    request: Request, method: Method, model: str | Path, out: str | Path, data: Any
) -> tuple[Path, Saved | None, list[Record] | None]:
    """(the folder to write, the allocation of a file, the records): all that can be refused before weights are read."""
    saved = read_allocation(request.asked.allocation) if request.from_file else None
    _check_data(request, method, data)
    path = check_output(out, resolve(model))
    refuse_adapter(model)
    refuse_packed(model)
    _check_parts(model, request.asked)
    return path, saved, None if data is None else read_records(data, request.asked.split)


def _loaded(
    model: str | Path,
    out: Path,
    records: list[Record] | None,
    request: Request,
    method: Method,
    runtime: Runtime,
    progress: Progress | None,
) -> tuple[Machine, CalibrationData, Structure, dict[str, torch.dtype]]:
    """(where and in what it is computed, the model with its records, its structure, what its weights are stored in)."""
    settings, team = request.asked, parallel.team()
    net, processor, streamed = load_streamed(model, slice(team.rank, None, team.size), runs=_runs(request, method))
    chosen, dtypes = machine_for(net, parallel.device_of(runtime.device), runtime.dtype), dtypes_of(net)
    if chosen.working != chosen.stored:
        net.float()
    streamed.spill_to = nearest(out) if settings.activations == "disk" else None
    plan = structure(net, patch_embedding=settings.patch_embedding)
    where: dict[str, Any] = {"device": chosen.block_device, "autocast": chosen.autocast, "progress": progress}
    where |= {"streamed": streamed, "every": tuple(streamed.pieces or plan.blocks())}
    sizes = (settings.samples, settings.batch_size, settings.seed, request.token_weights)
    calibration = CalibrationData(net, processor, records, *sizes, **where)
    if request.gradient and (method.needs or request.needs_data):
        calibration.guide()
    return chosen, calibration, plan, dtypes


def _completed(
    work: Path,
    out: Path,
    calibration: CalibrationData,
    finished: FinishedBlocks,
    patterns: Mapping[str, Pattern],
    manifest: Callable[[Mapping[str, Zeros]], dict[str, Any]],
) -> dict[str, Any]:
    """Writes what is left and gives the folder its name; what stands in ressa.json."""
    with writing(out, work):
        finished.complete()
    cast_back(calibration.net, dict(finished.shards.dtypes), ())
    return complete_folder(work, out, calibration.net, calibration.processor, patterns, manifest, LEFT)


def _output(
    work: Path,
    out: Path,
    calibration: CalibrationData,
    settings: Prune,
    dtypes: Mapping[str, torch.dtype],
    pruned: Set[str],
) -> tuple[FinishedBlocks, list[Block]]:
    """The output's files, in `work`, with what an earlier run left there; and the blocks that are pruned."""
    streamed, size = calibration.streamed, None if settings.shard_size is None else to_bytes(settings.shard_size)
    assert streamed is not None
    blocks = [block for block in calibration.every if block.linears.keys() & pruned]
    written = [block for block in calibration.every if block.name in streamed.places or block in blocks]
    with parallel.team().after_the_first(), writing(out, work):
        shards = Shards(work, streamed.net, dtypes, written, size, writes=not parallel.team().rank)
        return FinishedBlocks(shards, streamed, pruned), blocks


def _check_data(request: Request, method: Method, data: Any) -> None:
    for what, name, looks, needed in (
        ("method", request.asked.method, "at the inputs of layers", bool(method.needs)),
        ("allocation", request.name, "at how blocks are used", request.needs_data),
    ):
        if needed and data is None:
            raise RessaError(f"{what} '{name}' looks {looks}: name the data to calibrate on")


def _runs(request: Request, method: Method) -> bool:
    """Whether blocks run, or are asked for as such; else the model goes tensor by tensor."""
    return bool(method.needs or request.needs_data or request.asked.keep_dense or request.asked.patch_embedding)


def _identity(
    arguments: dict[str, Any], chosen: Machine, records: list[Record], patterns: Mapping[str, Pattern]
) -> dict[str, Any]:
    """What a stopped run was about: only the same one goes on with its blocks."""
    data = digest_of(drawn(records, arguments["samples"], arguments["seed"]))
    as_text = {name: repr(pattern) for name, pattern in patterns.items()}
    about = {"arguments": arguments, "compute": str(chosen.compute), "model": stamp(arguments["model"])}
    return about | {"data": data, "patterns": as_text}


def _check_alike(settings: Prune, identity: Mapping[str, Any]) -> None:
    """Raises RessaError if the processes are not about the same."""
    about = [asdict(settings), identity["data"], identity["patterns"], identity["compute"]]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    if len(set(parallel.team().exchange(digest))) > 1:
        raise RessaError("prune: the processes were given different models, data or settings: give all the same")


def _check_parts(model: str | Path, settings: Prune) -> None:
    """Raises RessaError for what is asked of a text-only model and needs pictures. Loads no weights."""
    if auto_class(read_config(model), model) is not AutoModelForCausalLM:
        return
    for part, share in (("vision", settings.vision), ("connector", settings.connector)):
        if share is not None and parse(share).sparsity:
            raise RessaError(f"{model} is a text-only model: it has no {part} to prune, leave --{part} out")
    if Request(settings).gradient:
        raise RessaError(
            f"{model} is a text-only model, whose every token is an answer: weights by gradient harm it "
            "(benchmarks/results/ideas.md), leave gradient out of token_weights"
        )


def _manifest(
    arguments: dict[str, Any],
    chosen: Machine,
    plan: Structure,
    patterns: dict[str, Pattern],
    allotted: dict[str, Any],
    seconds: float,
    found: Mapping[str, Zeros],
) -> dict[str, Any]:
    """What ressa.json says: the request, what it ran on, and what came of it, per matrix and per part."""
    matrices: dict[str, dict[str, Any]] = {}
    parts: dict[str, dict[str, Any]] = {}
    for part in plan.parts.values():
        own = {
            name: _matrix(linear.weight.shape, found[name], block, patterns[name])
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
        "processes": parallel.team().size,
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory(),
        "allocation": allotted,
        "together": {"weights": weights, "zeros": zeros, "sparsity": zeros / weights},
        "parts": parts,
        "matrices": matrices,
    }


def _matrix(shape: torch.Size, found: Zeros, block: Block, pattern: Pattern) -> dict[str, Any]:
    entry = {"part": block.part, "pattern": str(pattern), "shape": list(shape)}
    if isinstance(pattern, Unstructured):
        entry["group"] = pattern.group
    return entry | {"weights": found.weights, "zeros": found.zeros, "sparsity": found.sparsity}
