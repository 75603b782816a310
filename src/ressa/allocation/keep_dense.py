"""Which blocks an N:M model had better keep dense: those whose output would change the most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ressa.calibration.data import CalibrationData
from ressa.calibration.gather import gather
from ressa.calibration.outputs import apart, outputs_of
from ressa.calibration.walk import Visit
from ressa.errors import RessaError
from ressa.model.structure import Block

Change = Callable[[Block, Mapping[str, Any]], None]  # prunes a block in place, given its inputs


def most_sensitive(errors: Mapping[str, float], k: int) -> list[str]:
    """The `k` blocks of largest error, the largest first, among equal ones the earliest."""
    if k >= len(errors):
        raise RessaError(f"keep_dense {k} of {len(errors)} blocks leaves nothing to prune: keep fewer")
    return sorted(errors, key=lambda name: -errors[name])[:k]


@torch.no_grad()
def sensitivity(data: CalibrationData, needs: type[Any] | None, change: Change) -> dict[str, float]:
    """The squared change of each block's output, relative to the output, if it alone of the model were pruned.

    It is measured: `change` prunes the block, which runs again on the inputs it has in the dense model, and is put
    back. Relative to what the block hands on, residual included, blocks of unlike scale compare. A method that needs
    no data (`needs` is None) is told by its weights: their squared change, relative to them.
    """
    if needs is None:
        return {block.name: _weights_error(block, change) for block in data.blocks}
    errors: dict[str, float] = {}
    for visit in data.visits():
        inputs = gather(visit, needs, data.tokens)
        before, dense = _copies(visit.block), _outputs(visit)
        try:
            change(visit.block, inputs)
            errors[visit.block.name] = _relative(data, visit, dense, _outputs(visit))
        finally:
            _restore(visit.block, before)
    for name in (block.name for block in data.blocks if block.name not in errors):
        raise RessaError(f"no calibration record enters {name}: add records that do, or leave its part out")
    return errors


def _weights_error(block: Block, change: Change) -> float:
    before = _copies(block)
    try:
        change(block, dict.fromkeys(block.linears))
        pairs = [(linear.weight.float(), before[name].float()) for name, linear in block.linears.items()]
        lost = sum((after - weight).square().sum().item() for after, weight in pairs)
        return lost / (sum(weight.square().sum().item() for _, weight in pairs) or 1)
    finally:
        _restore(block, before)


def _copies(block: Block) -> dict[str, Tensor]:
    return {name: linear.weight.detach().clone() for name, linear in block.linears.items()}


def _restore(block: Block, before: Mapping[str, Tensor]) -> None:
    for name, linear in block.linears.items():
        linear.weight.copy_(before[name])


def _outputs(visit: Visit) -> list[Tensor]:
    """What the block as it now is hands on in each call."""
    with outputs_of([visit.block]) as found:
        for call in visit.calls:
            visit.run(call)
    return found[visit.block.name]


def _relative(data: CalibrationData, visit: Visit, dense: list[Tensor], pruned: list[Tensor]) -> float:
    pairs = [
        apart(after, before, data.tokens[call.batch], visit.block)
        for call, before, after in zip(visit.calls, dense, pruned, strict=True)
    ]
    return sum(far.item() for far, _ in pairs) / (sum(size.item() for _, size in pairs) or 1)
