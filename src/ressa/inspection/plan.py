"""inspect --plan: what pruning and repairing a model will take, from its config alone. No weight is read or made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ressa.data.prompts import is_encoder_decoder
from ressa.errors import RessaError
from ressa.files.paths import path_of
from ressa.files.text import format_bytes, to_bytes
from ressa.inspection.costs import (
    WIDE,
    Shape,
    Workload,
    activation_bytes,
    adapters,
    prune_bytes,
    prune_flop,
    repair_flop,
    shape_of,
)
from ressa.inspection.settings import Plan
from ressa.methods import METHODS
from ressa.model.described import config_of, described
from ressa.model.load import auto_class, read_config
from ressa.model.structure import BY_DEFAULT, PARTS, Structure, structure
from ressa.patterns import Pattern, parse
from ressa.settings import check_paths
from ressa.statistics import Method

STORED = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}  # bytes a prunable weight; int8 leaves the others in bfloat16
WORDS, PATCHES = 64, 1024  # of text beside a picture; of a picture whose size the config does not tell
ADAM, TRAINED = 16, 12  # bytes a new number (itself, gradient, two moments), and those a number of the model takes more


@dataclass(frozen=True)
class _Sizes:
    """What the arithmetic needs of a model."""

    shapes: tuple[Shape, ...]
    parameters: int
    outside: int  # of these, what pruning holds all the time
    width: int  # bytes a stored weight
    trained: int  # numbers of connector, norms and biases, which repair trains as they are
    head: int
    words: int
    heads: int


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
    sizes = _sizes(net, parts, width)
    seen, read = _picture(net.config)
    length, encoder_decoder = settings.tokens or read + WORDS, is_encoder_decoder(net.config)
    batch, answers = settings.batch_size, min(settings.answers, length)
    load = Workload(settings.samples, batch or 8, length, settings.patches or seen, answers, encoder_decoder)
    trains = replace(load, batch_size=batch or 16)
    rows = {"load": _fits(_row(sizes.parameters * sizes.width, 0.0), limit, ())}
    rows |= {f"prune: {name}": _prune(method, sizes, load, limit) for name, method in METHODS.items()}
    rows["repair"] = _repair(sizes, trains, settings.steps, settings.rank, limit)
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
        "steps": rows,
    }


def _config(model: str | Path) -> PreTrainedConfig:
    path = path_of(model, "the model")
    if not path.is_file():
        return read_config(model)
    return config_of(model, str(path))


def _dtype(config: PreTrainedConfig) -> torch.dtype:
    return getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32


def _sizes(net: PreTrainedModel, parts: Structure, width: int) -> _Sizes:
    blocks = [block for block in parts.blocks(BY_DEFAULT) if block.linears]
    vectors = sum(p.numel() for block in blocks for p in block.module.parameters() if p.ndim == 1)
    connector, head = parts.parts.get("connector"), net.get_output_embeddings()
    text, total = net.config.get_text_config(), sum(part.parameters for part in parts.parts.values())
    return _Sizes(
        tuple(shape_of(block) for block in blocks),
        total,
        total - sum(linear.weight.numel() for block in parts.blocks() for linear in block.linears.values()),
        width,
        vectors + (connector.parameters if connector else 0),
        head.weight.numel() if head is not None else 0,
        text.vocab_size,
        getattr(text, "num_attention_heads", None) or 16,
    )


def _part(part: Any, sizes: _Sizes) -> dict[str, Any]:
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


def _picture(config: Any) -> tuple[int, int]:
    """(patches of a picture in the vision tower, its tokens in the language model)."""
    vision, text = getattr(config, "vision_config", None), config.get_text_config()
    if vision is None:
        return 0, 0
    size, patch = (_side(getattr(vision, name, None)) for name in ("image_size", "patch_size"))
    patches = (size // patch) ** 2 if size and patch and size > patch else PATCHES
    if getattr(text, "cross_attention_layers", None):
        return patches, 0  # text attends to the picture instead of reading it
    for holder, name in (
        (config, "image_seq_length"),
        (config, "mm_tokens_per_image"),
        (config, "num_query_tokens"),
        (text, "num_image_tokens"),
    ):
        if isinstance(value := getattr(holder, name, None), int):
            return patches, value
    merged = getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", None) or 1
    return patches, patches // int(merged) ** 2


def _side(value: Any) -> int:
    value = value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value
    return value if isinstance(value, int) else 0


def _row(needed: float, flop: float, **more: Any) -> dict[str, Any]:
    return {"bytes": needed, "flop": flop, "fits": None, "change": None, **more}


def _prune(method: Method, sizes: _Sizes, load: Workload, limit: int | None) -> dict[str, Any]:
    """One block is in memory at a time, beside what is outside of the blocks and what waits between them."""
    largest = max((shape.parameters for shape in sizes.shapes), default=0) * sizes.width
    outside = sizes.outside * sizes.width

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


def _repair(sizes: _Sizes, load: Workload, steps: int, rank: int, limit: int | None) -> dict[str, Any]:
    """Student, teacher, gradients and moments of what is trained, activations, the largest W_eff and all experts'."""
    trained = adapters(sizes.shapes, rank)

    def needs(load: Workload, teachers: int = 1) -> dict[str, float]:
        kept = sum(activation_bytes(shape, load, sizes.heads) for shape in sizes.shapes)
        kept += 2 * teachers * WIDE * sum(load.batch_size * load.length(shape) * shape.width for shape in sizes.shapes)
        kept += 4 * WIDE * load.batch_size * load.answers * sizes.words
        largest = max((read.weights for shape in sizes.shapes for read in shape.reads), default=0)
        return {
            "student": sizes.parameters * WIDE,
            "teacher": teachers * sizes.parameters * WIDE,
            "optimizer": trained * ADAM + sizes.trained * TRAINED,
            "activations": kept,
            "workspace": WIDE * (2 * largest + sum(shape.fused for shape in sizes.shapes)),
        }

    memory = needs(load)
    flop = steps * repair_flop(sizes.shapes, load, rank=rank, head=sizes.head, teacher=True)
    ways = []
    for size in (8, 4, 2, 1):
        if size < load.batch_size:
            total = sum(needs(replace(load, batch_size=size)).values())
            ways.append((total, f"--batch-size {size}: {format_bytes(total)}"))
    alone = sum(needs(replace(load, batch_size=1), 0).values())
    ways.append((alone, f"--batch-size 1 --kl-weight 0 --hidden-weight 0 (no teacher): {format_bytes(alone)}"))
    ways.append((math.inf, f"not even --batch-size 1 without a teacher, which takes {format_bytes(alone)}"))
    return _fits(_row(sum(memory.values()), flop, memory=memory, trained=trained + sizes.trained), limit, ways)


def _fits(row: dict[str, Any], limit: int | None, ways: Iterable[tuple[float, str]]) -> dict[str, Any]:
    """The row with whether it fits and, if not, the first of `ways` (bytes, words) that does."""
    if limit is None:
        return row
    fits = row["bytes"] <= limit
    change = None if fits else next((text for size, text in ways if size <= limit or size == math.inf), None)
    return row | {"fits": fits, "change": change}
