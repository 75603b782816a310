"""prune: a dense model folder in, a folder of the same model with zeros out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ressa import methods
from ressa.calibration.gather import gather
from ressa.calibration.samples import samples as draw
from ressa.calibration.tokens import check_counts
from ressa.calibration.tokens import token_weights as weights_of
from ressa.calibration.walk import PROPAGATE, Progress, walk
from ressa.data.records import read_records
from ressa.errors import RessaError, unknown
from ressa.inputs import Method
from ressa.model.folder import check_output, write_folder
from ressa.model.load import auto_class, load, read_config
from ressa.model.structure import Block, Structure, structure
from ressa.patterns import Pattern, Unstructured, parse
from ressa.provenance import peak_memory, plain, versions

Sparsity = str | float


def prune(
    model: str | Path,
    out: str | Path,
    *,
    data: Any = None,
    method: str = "wanda",
    sparsity: Sparsity = "2:4",
    vision: Sparsity | None = None,
    connector: Sparsity | None = None,
    language: Sparsity | None = None,
    samples: int = 128,
    batch_size: int = 8,
    seed: int = 0,
    propagate: str = "sequential",
    damp: float | None = None,
    token_weights: Mapping[str, float] | None = None,
    split: str = "train",
    group: str | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prunes `model` and writes it, with its processor and ressa.json, to `out`. Returns what stands in ressa.json.

    Args:
        model: a model folder, a hub name, or `demo`.
        out: folder to write; must not exist or be empty.
        data: what `read_records` reads; methods that look at weights alone need none.
        method: magnitude, wanda or sparsegpt.
        sparsity: of vision and language: "2:4" keeps 2 of every 4 neighbouring inputs, "50%" or 0.5 makes half zero.
        vision, connector, language: the same for one part; "0" leaves it out, as it does the connector unless told.
        samples, batch_size, seed, split: how many records are drawn from which split, and in what batches they run.
        propagate: "sequential": a block's inputs come from pruned blocks; "dense": from blocks as they were.
        damp: SparseGPT's damping, as a share of the mean of the Gram's diagonal.
        token_weights: how much "image", "text" and "answer" tokens count (1 each); padding never counts.
        group: what competes in an unstructured pattern, "row" or "matrix"; by default matrices in vision, else rows.
        device: where blocks are pruned, one at a time; None where the model is loaded, on the CPU.
        progress: called with (blocks done, blocks in all, name of the next).

    Raises:
        RessaError: one line; before weights are loaded where that is possible. Nothing is written then.
    """
    arguments = {name: plain(value) for name, value in locals().items() if name not in ("out", "progress")}
    started = time.perf_counter()
    run = methods.get(method, damp=damp)
    wanted = _wanted(sparsity, vision, connector, language, group)
    counts = check_counts(token_weights)
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    if samples < 1 or batch_size < 1:
        raise RessaError(f"samples ({samples}) and batch size ({batch_size}) must be at least 1")
    if run.needs and data is None:
        raise RessaError(f"method '{method}' looks at the inputs of layers: name the data to calibrate on")
    check_output(out)
    _check_parts(model, vision, connector)
    records = None if data is None else read_records(data, split)

    net, processor = load(model)
    plan = structure(net)
    patterns = _patterns(plan, wanted, group)
    blocks = [block for block in plan.blocks() if block.linears.keys() & patterns.keys()]
    if run.needs is None:
        _without_data(run, blocks, patterns, progress)
    else:
        batches = draw(records, processor, net.config, samples, batch_size=batch_size, seed=seed)
        tokens = [weights_of(batch, net.config, counts) for batch in batches]
        unseen = dict.fromkeys(block.name for block in blocks)
        for visit in walk(net, blocks, batches, propagate=propagate, device=device, progress=progress):
            _apply(run, visit.block, gather(visit, run.needs, tokens), patterns)
            del unseen[visit.block.name]
        for name in unseen:
            raise RessaError(f"no calibration record enters {name}: add records that do, or leave its part out")
    manifest = _manifest(arguments, plan, patterns, time.perf_counter() - started)
    write_folder(out, net, processor, manifest, patterns=patterns)
    return manifest


def _wanted(
    sparsity: Sparsity,
    vision: Sparsity | None,
    connector: Sparsity | None,
    language: Sparsity | None,
    group: str | None,
) -> dict[str, Sparsity]:
    """The sparsity of each part, all of them readable."""
    wanted = {
        "vision": sparsity if vision is None else vision,
        "connector": 0 if connector is None else connector,
        "language": sparsity if language is None else language,
    }
    for text in (sparsity, *wanted.values()):
        parse(text, group or "row")  # type: ignore[arg-type]
    return wanted


def _check_parts(model: str | Path, vision: Sparsity | None, connector: Sparsity | None) -> None:
    """Raises RessaError if a part is asked of a model whose config says that it has none. Loads no weights."""
    if auto_class(read_config(model), model) is not AutoModelForCausalLM:
        return
    for part, asked in (("vision", vision), ("connector", connector)):
        if asked is not None and parse(asked).sparsity:
            raise RessaError(f"{model} is a text-only model: it has no {part} to prune, leave --{part} out")


def _patterns(plan: Structure, wanted: dict[str, Sparsity], group: str | None) -> dict[str, Pattern]:
    """The pattern of every linear that is to be pruned; RessaError if one does not fit, or if there is none."""
    patterns: dict[str, Pattern] = {}
    for block in plan.blocks():
        # in vision towers rows differ in what they can spare; in decoders each row is better off with its share
        default = "matrix" if block.part == "vision" else "row"
        pattern = parse(wanted[block.part], group or default)  # type: ignore[arg-type]
        if pattern.sparsity:
            patterns |= dict.fromkeys(block.linears, pattern)
            for name, linear in block.linears.items():
                pattern.check(linear.weight.shape, name)
    if not patterns:
        raise RessaError("nothing to prune: every part of the model is left out")
    return patterns


def _without_data(run: Method, blocks: list[Block], patterns: dict[str, Pattern], progress: Progress | None) -> None:
    for done, block in enumerate(blocks):
        if progress:
            progress(done, len(blocks), block.name)
        _apply(run, block, dict.fromkeys(block.linears), patterns)
    if progress:
        progress(len(blocks), len(blocks), "")


@torch.no_grad()
def _apply(run: Method, block: Block, inputs: Mapping[str, Any], patterns: dict[str, Pattern]) -> None:
    """Prunes the linears of one block. Raises RessaError for one of whose inputs nothing is known."""
    for name, linear in block.linears.items():
        if name not in inputs or (inputs[name] is not None and not inputs[name].tokens):
            raise RessaError(f"no token of the calibration data reaches {name}: use more samples or leave its part out")
        linear.weight.copy_(run(linear.weight, inputs[name], patterns[name]))


def _manifest(
    arguments: dict[str, Any], plan: Structure, patterns: dict[str, Pattern], seconds: float
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
    return {
        "command": "prune",
        "arguments": arguments,
        "seed": arguments["seed"],
        "versions": versions(),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory(),
        "parts": parts,
        "matrices": matrices,
    }


def _matrix(weight_OI: torch.Tensor, block: Block, pattern: Pattern) -> dict[str, Any]:
    zeros, weights = int((weight_OI == 0).sum()), weight_OI.numel()
    entry = {"part": block.part, "pattern": str(pattern), "shape": list(weight_OI.shape)}
    if isinstance(pattern, Unstructured):
        entry["group"] = pattern.group
    return entry | {"weights": weights, "zeros": zeros, "sparsity": zeros / weights}
