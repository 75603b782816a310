"""inspect --plan: what pruning and repairing a model will take, from its config alone. No weight is read or made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ressa.costs.pruning import prune_bytes, prune_flop
from ressa.costs.repairing import Way, adapters, cache_bytes, repair_bytes, repair_flop, ways
from ressa.costs.shapes import WIDE, Sizes, Workload, picture, sizes_of
from ressa.data.prompts import is_encoder_decoder
from ressa.errors import RessaError
from ressa.files.paths import path_of
from ressa.files.text import format_bytes, to_bytes
from ressa.inspection.settings import Plan
from ressa.methods import METHODS
from ressa.model.described import config_of, described
from ressa.model.load import auto_class, read_config
from ressa.model.structure import BY_DEFAULT, PARTS, Structure, structure
from ressa.patterns import Pattern, parse
from ressa.settings import check_paths
from ressa.statistics import Method

STORED = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}  # bytes a prunable weight; int8 leaves the others in bfloat16
WORDS = 64  # of text beside a picture
PROCESS = 450_000_000  # bytes of Python, torch, transformers and a processor, measured (benchmarks/results/scale.md)
TOP_K = 64  # words that a teacher's cache keeps at each place of an answer


def plan(model: str | Path, sparsity: str = "2:4", *, settings: Plan) -> dict[str, Any]:
    """What `model` is made of, its size on disk, and the memory and work of pruning it by each method and repairing it.

    Args:
        model: a folder (its config.json is enough), a config.json file, a hub name or `demo`.
        sparsity: of vision and language.

    Raises:
        RessaError: no such model, a config of no known model.
    """
    check_paths("inspect", model=model)
    limit, pattern = None if settings.memory is None else to_bytes(settings.memory), parse(sparsity)
    config = _config(model)
    width = _dtype(config).itemsize  # before a model is made of it, which sets it
    net = described(model, config, auto_class(config, model))
    parts = structure(net)
    sizes = sizes_of(net, parts, width)
    seen, read = picture(net.config)
    length, encoder_decoder = settings.tokens or read + WORDS, is_encoder_decoder(net.config)
    batch, answers = settings.batch_size, min(settings.answers, length)
    load = Workload(settings.samples, batch or 8, length, settings.patches or seen, answers, encoder_decoder)
    trains = replace(load, batch_size=batch or 16)
    rows = {"load": _fits(_row(sizes.parameters * sizes.width, 0.0), limit, ())}
    rows |= {f"prune: {name}": _prune(method, sizes, load, limit) for name, method in METHODS.items()}
    rows["repair"] = _repair(sizes, trains, settings, limit)
    for row in rows.values():
        row["seconds"] = row["flop"] / settings.gflops / 1e9 if settings.gflops else None
    return {
        "model": str(model),
        "sparsity": sparsity,
        "parameters": sizes.parameters,
        "parts": {part.name: _part(part, sizes) for part in parts.parts.values()},
        "disk": _disk(parts, sizes.parameters, pattern),
        "assumed": {name.replace("encoder_decoder", "crossing"): value for name, value in vars(load).items()}
        | {"repair_batch_size": trains.batch_size, "repair_steps": settings.steps, "rank": settings.rank},
        "memory": limit,
        "process": PROCESS,
        "steps": rows,
    }


def _config(model: str | Path) -> PreTrainedConfig:
    path = path_of(model, "the model")
    if not path.is_file():
        return read_config(model)
    return config_of(model, str(path))


def _dtype(config: PreTrainedConfig) -> torch.dtype:
    return getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32


def _part(part: Any, sizes: Sizes) -> dict[str, Any]:
    weights = sum(linear.weight.numel() for block in part.blocks for linear in block.linears.values())
    return {
        "parameters": part.parameters,
        "prunable": weights,
        "share": weights / sizes.parameters,
        "linears": sum(len(block.linears) for block in part.blocks),
        "pruned_by_default": part.name in BY_DEFAULT,
        "can_be_pruned": part.name in PARTS,
    }


def _disk(parts: Structure, parameters: int, pattern: Pattern) -> dict[str, dict[str, float]]:
    """Bytes by dtype, dense and as values with a bitmask (a kept weight's own bytes, and one bit for every weight)."""
    pruned = 0
    for block in parts.blocks(BY_DEFAULT):
        for name, linear in block.linears.items():
            try:
                pattern.check(linear.weight.shape, name)
            except RessaError:
                continue  # it stays dense
            pruned += linear.weight.numel()
    found = {}
    for dtype, width in STORED.items():
        rest = (parameters - pruned) * max(width, 2.0)
        kept = (1 - pattern.sparsity) * width + 1 / 8
        found[dtype] = {"dense": pruned * width + rest, "sparse": pruned * kept + rest}
    return found


def _row(needed: float, flop: float, **more: Any) -> dict[str, Any]:
    return {"bytes": needed, "flop": flop, "fits": None, "change": None, **more}


def _prune(method: Method, sizes: Sizes, load: Workload, limit: int | None) -> dict[str, Any]:
    """One block is in memory at a time, beside what is outside of the blocks and what waits between them.

    Without data it is one tensor, beside nothing.
    """
    outside, largest = sizes.outside * sizes.width, sizes.width * max((s.parameters for s in sizes.shapes), default=0)
    if method.needs is None:
        outside, largest = 0, sizes.alone * sizes.width

    def needs(load: Workload, waiting: bool = True) -> tuple[float, float]:
        beside, there = prune_bytes(method, sizes.shapes, load, sizes.width)
        return outside + largest + (beside if waiting else there), there + largest

    whole, device = needs(load)
    work, one = prune_flop(method, sizes.shapes, load), replace(load, batch_size=1)
    least = needs(one, waiting=False)[0]
    ways = [
        (needs(load, waiting=False)[0], "--activations disk"),
        (needs(one)[0], "--batch-size 1"),
        (least, "--activations disk --batch-size 1"),
    ]
    told = [(size, f"{words}: {format_bytes(size)}") for size, words in ways if size < whole]
    told.append((math.inf, f"not even --activations disk --batch-size 1, which takes {format_bytes(least)}"))
    return _fits(_row(whole, sum(work.values()), device_bytes=device, work=work), limit, told)


def _repair(sizes: Sizes, load: Workload, settings: Plan, limit: int | None) -> dict[str, Any]:
    """Repair as it would carry itself out in so much memory; where that does not fit, the options that help."""
    new = adapters(sizes.shapes, settings.rank)
    start = Way(width=min(sizes.width, WIDE))
    cached = cache_bytes(sizes.shapes, load, TOP_K)
    options = [("", start)]
    for words, changes in (
        *((("--dtype bfloat16", {"width": 2}),) if sizes.width > 2 else ()),
        (f"--teacher-cache DIR ({format_bytes(cached)} of disk a record)", {"teacher": False}),
        ("--optim paged_adamw_8bit", {"moments": 2}),
    ):
        name, way = options[-1]
        options.append((f"{name} {words}".strip(), replace(way, **changes)))

    def needs(way: Way) -> dict[str, float]:
        return repair_bytes(sizes, load, way, new, sizes.trained)

    found = [(name, way, sum(needs(way).values())) for name, option in options for way in ways(load, option)]
    own = [way for name, way, size in found if not name and (limit is None or size <= limit)]
    way = next((way for way in own if limit or way.recompute), replace(start, recompute=True, pieces=load.batch_size))
    memory, least = needs(way), min(size for *_, size in found)
    asked: dict[str, Any] = {"rank": settings.rank, "head": sizes.head, "teacher": True, "recompute": way.recompute}
    flop = settings.steps * repair_flop(sizes.shapes, load, **asked)
    helps = [(size, f"{name}: {format_bytes(size)}{_by_itself(way)}") for name, way, size in found if name]
    helps.append((math.inf, f"not even with {options[-1][0]}, which takes {format_bytes(least)}"))
    row = _row(sum(memory.values()), flop, memory=memory, trained=new + sizes.trained, way=str(way))
    row["ways"] = {str(way) or "as it is": size for name, way, size in found if not name}
    return _fits(row | {"cache_record_bytes": cached}, limit, helps)


def _by_itself(way: Way) -> str:
    return f" (by itself {way})" if str(way) else ""


def _fits(row: dict[str, Any], limit: int | None, ways: Iterable[tuple[float, str]]) -> dict[str, Any]:
    """The row with whether it fits and, if not, the first of `ways` (bytes, words) that does."""
    if limit is None:
        return row
    fits = row["bytes"] <= limit
    change = None if fits else next((text for size, text in ways if size <= limit or size == math.inf), None)
    return row | {"fits": fits, "change": change}
