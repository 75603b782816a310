"""Which blocks an N:M model had better keep dense: those whose output would change the most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ressa.calibration.data import CalibrationData
from ressa.calibration.outputs import output_of, squared_error
from ressa.calibration.sweep import DENSE, Turn, sweep
from ressa.calibration.visit import Visit
from ressa.errors import RessaError
from ressa.model.structure import Block
from ressa.parallel import team


def most_sensitive(errors: Mapping[str, float], k: int) -> list[str]:
    """The `k` blocks of largest error, the largest first, among equal ones the earliest."""
    if k >= len(errors):
        raise RessaError(f"keep_dense {k} of {len(errors)} blocks leaves nothing to prune: keep fewer")
    return sorted(errors, key=lambda name: -errors[name])[:k]


@torch.no_grad()
def sensitivity(data: CalibrationData, needs: type[Any] | None, change: Callable[[Turn], None]) -> dict[str, float]:
    """The squared change of each block's output, relative to the output, if it alone of the model were pruned.

    It is measured: `change` prunes the block (in all processes), which runs again on the inputs it has in the dense
    model, and is put back. Relative to what the block hands on, residual included, blocks of unlike scale compare. A
    method that needs no data (`needs` is None) is judged by its weights: their squared change, relative to them.
    """
    errors: dict[str, float] = {}
    for turn in sweep(data, needs, DENSE):
        block, visit = turn.block, turn.visit
        before = {name: linear.weight.detach().clone() for name, linear in block.linears.items()}
        dense = _outputs(visit) if visit else []
        try:
            change(turn)
            errors[block.name] = _output_error(data, visit, dense) if visit else _weights_error(block, before)
        finally:
            for name, linear in block.linears.items():
                linear.weight.copy_(before[name])
    return errors


def _weights_error(block: Block, before: Mapping[str, Tensor]) -> float:
    pairs = [(linear.weight.float(), before[name].float()) for name, linear in block.linears.items()]
    lost = sum((after - weight).square().sum().item() for after, weight in pairs)
    return lost / (sum(weight.square().sum().item() for _, weight in pairs) or 1)


def _output_error(data: CalibrationData, visit: Visit, dense: Sequence[Tensor]) -> float:
    by_batch: list[list[tuple[float, float]]] = [[] for _ in data.batches]
    for call, before, after in zip(visit.calls, dense, _outputs(visit), strict=True):
        error, size = squared_error(after, before, data.tokens[call.batch], visit.block)
        by_batch[call.batch].append((error.item(), size.item()))
    pairs = [pair for batch in team().in_order(by_batch) for pair in batch]
    return sum(error for error, _ in pairs) / (sum(size for _, size in pairs) or 1)


def _outputs(visit: Visit) -> list[Tensor]:
    """What the block as it now is hands on in each call."""
    return [output_of(visit, call) for call in visit.calls]
