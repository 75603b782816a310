"""From a request to the pattern of every linear, and to what ressa.json says of how it came about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ressa import allocation as allocations
from ressa.allocation.budget import whole
from ressa.allocation.by_modality import by_modality
from ressa.allocation.file import Saved
from ressa.allocation.keep_dense import most_sensitive, sensitivity
from ressa.calibration.data import CalibrationData
from ressa.calibration.places import Matrices
from ressa.calibration.sweep import Turn
from ressa.errors import RessaError, unknown
from ressa.model.structure import PARTS, Block, Structure
from ressa.patterns import Pattern, Unstructured, parse
from ressa.pruning.blocks import prune_block
from ressa.pruning.request import Request
from ressa.statistics import Method

Patterns = dict[str, Pattern]


def assign_patterns(
    request: Request, saved: Saved | None, plan: Structure, data: CalibrationData, method: Method
) -> tuple[Patterns, dict[str, Any]]:
    """The pattern of every linear that plays a part, dense ones as 0%, and the manifest's entry "allocation".

    Args:
        saved: what the file says that the request names.
        data: the model and its data; batches are made only if something must be measured.
        method: for `keep_dense`, which tries it on every block.

    Raises:
        RessaError: a pattern that does not fit, a budget that cannot be met, a file of another model.
    """
    if saved is not None:
        patterns = _patterns_of(request, plan.blocks(), _matched(saved, plan), saved.unit)
        allocation: dict[str, Any] = {"name": saved.path, "unit": saved.unit, "sparsity": saved.sparsity}
    elif request.plain:
        patterns, allocation = _plain(request, plan.blocks()), {"name": "uniform"}
        if request.asked.keep_dense:
            allocation |= _keep_dense(request.asked.keep_dense, plan, patterns, data, method)
    else:
        allocation = _shared_out(request, plan, data)
        patterns = _patterns_of(request, plan.blocks(), allocation["sparsity"], allocation["unit"])
    if not any(pattern.sparsity for pattern in patterns.values()):
        raise RessaError("nothing to prune: every part of the model is left out")
    return patterns, allocation


def _plain(request: Request, blocks: Iterable[Block]) -> Patterns:
    """Each part's pattern for all its linears."""
    patterns: Patterns = {}
    for block in blocks:
        pattern = parse(request.sparsity_of(block.part), request.group_in(block.part, exact=False))
        if pattern.sparsity:
            patterns |= dict.fromkeys(block.linears, pattern)
            for name, linear in block.linears.items():
                pattern.check(linear.weight.shape, name)
    return patterns


def _keep_dense(k: int, plan: Structure, patterns: Patterns, data: CalibrationData, method: Method) -> dict[str, Any]:
    """Sets the patterns of the `k` most sensitive blocks to 0%, and tells which and why."""
    blocks = [block for block in plan.blocks() if block.linears.keys() & patterns.keys()]
    if k >= len(blocks):
        most_sensitive(dict.fromkeys((block.name for block in blocks), 0.0), k)  # refuses before anything is measured

    def prune(turn: Turn) -> None:
        prune_block(method, turn.block, turn.inputs, patterns, turn.linears)
        turn.share()

    errors = sensitivity(data.over(blocks), method.needs, prune)
    dense = most_sensitive(errors, k)
    for block in blocks:
        if block.name in dense:
            patterns.update(dict.fromkeys(block.linears, Unstructured(0.0)))
    return {"kept_dense": dense, "error": errors}


def _shared_out(request: Request, plan: Structure, data: CalibrationData) -> dict[str, Any]:
    """The sparsity of every block (or linear) of the parts that are pruned."""
    entry, blocks = allocations.get(request.name), [block for block in plan.blocks() if block.linears]
    parts, held = _parts(request, blocks)
    blocks = [block for block in blocks if parts.get(block.part)]
    measured = entry.measure(data.over(blocks)) if entry.measure else {}
    settings = (
        {}
        if entry.spread is None
        else {"spread": entry.spread if request.asked.spread is None else request.asked.spread}
    )
    sparsity: dict[str, float] = {}
    pools = {block.part: parts[block.part] for block in blocks} if request.pool == "part" else {"": sum(parts.values())}
    for part, zeros in pools.items():
        pool = [block for block in blocks if part in ("", block.part)]
        units = _linears(pool) if entry.unit == "linear" else {block.name: block for block in pool}
        sizes = {name: _size(unit) for name, unit in units.items()}
        bare = Matrices(pool, data.places)
        scores = bare if entry.unit == "linear" else {name: measured.get(name, 0.0) for name in sizes}
        sparsity |= entry.share(scores, sizes, zeros, **settings)
    allocation = {"name": request.name, "unit": entry.unit, "sparsity": sparsity, "zeros": parts, "weights": held}
    allocation |= {} if request.name == "uniform" else {"budget": request.pool}
    return allocation | settings | ({"score": measured} if measured else {})


def _parts(request: Request, blocks: list[Block]) -> tuple[dict[str, int], dict[str, int]]:
    """How many zeros each part is to hold, and how many weights it has; parts that do not count are left out."""
    sizes: dict[str, int] = {}
    for block in blocks:
        sizes[block.part] = sizes.get(block.part, 0) + _size(block)
    if request.asked.total is None:
        shares: dict[str, float] = {part: parse(request.sparsity_of(part)).sparsity for part in PARTS}
        counted = {part: n for part, n in sizes.items() if shares[part]}
        return {part: round(shares[part] * n) for part, n in counted.items()}, counted
    fixed = {part: pattern.sparsity for part, pattern in request.own_patterns().items()}
    counted = {part: n for part, n in sizes.items() if part != "connector" or part in fixed}
    return by_modality(parse(request.asked.total).sparsity, fixed, counted), counted


def _matched(saved: Saved, plan: Structure) -> dict[str, float]:
    blocks = [block for block in plan.blocks() if block.linears]
    known = {block.name for block in blocks} if saved.unit == "block" else set(_linears(blocks))
    for name in saved.sparsity:
        if name not in known:
            near = str(unknown(saved.unit, name, known)).partition(" (known")[0]
            raise RessaError(f"{saved.path}: is for another model: {near}")
    return saved.sparsity


def _patterns_of(request: Request, blocks: Iterable[Block], sparsity: Mapping[str, float], unit: str) -> Patterns:
    """Shares as patterns. A block's zeros go to its linears by size, and add up to the very weight."""
    patterns: Patterns = {}
    for block in blocks:
        sizes = {name: linear.weight.numel() for name, linear in block.linears.items()}
        if unit == "linear":
            zeros = {name: round(sparsity[name] * n) for name, n in sizes.items() if name in sparsity}
        elif block.name in sparsity:
            share, n = sparsity[block.name], _size(block)
            most = {name: size - 1 for name, size in sizes.items()}
            zeros = whole({name: share * size for name, size in sizes.items()}, round(share * n), most)
        else:
            continue
        group = request.group_in(block.part, exact=True)
        patterns |= {name: Unstructured(count / sizes[name], group) for name, count in zeros.items()}
    return patterns


def _linears(blocks: Iterable[Block]) -> dict[str, Tensor]:
    return {name: linear.weight for block in blocks for name, linear in block.linears.items()}


def _size(unit: Block | Tensor) -> int:
    return unit.numel() if isinstance(unit, Tensor) else sum(linear.weight.numel() for linear in unit.linears.values())
