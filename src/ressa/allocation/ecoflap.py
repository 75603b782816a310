"""ECoFLaP: a block keeps the more, the more the answers depend on it, in vision and language alike (Sung et al. 2023).

Paper: arXiv 2310.02998, section 3.2. First order: |weight| * |gradient|. Zeroth order: how much the loss moves when
the block's weights are perturbed, from forwards alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ressa.allocation.budget import as_sparsity, caps, whole
from ressa.calibration.data import CalibrationData
from ressa.calibration.gradient import learning
from ressa.data.prompts import IGNORED, to_device
from ressa.errors import RessaError
from ressa.model.matrix import AsLinear, parameter
from ressa.parallel import team

STEP = 1e-3  # epsilon of the zeroth order


def ecoflap(
    scores: Mapping[str, float], weights: Mapping[str, int], zeros: int, spread: float = 0.1
) -> dict[str, float]:
    """{block: sparsity} from {block: mean score of a weight}; none above S + `spread`.

    Every block keeps what that limit leaves it; what else may stay goes by score times size, and what a full block
    cannot take to the others in the same proportion.
    """
    if not all(math.isfinite(score) and score >= 0 for score in scores.values()):
        raise RessaError("the loss or its gradient is NaN or infinite: load the model in float32 or bfloat16")
    size = sum(weights.values())
    room = caps(weights, zeros, zeros / size + spread)
    kept = {name: float(n - room[name]) for name, n in weights.items()}
    left, hungry = size - zeros - sum(kept.values()), dict(weights)
    while hungry and left > 0:
        pull = {name: scores[name] * n for name, n in hungry.items()}
        if not any(pull.values()):
            pull = {name: float(n) for name, n in hungry.items()}
        portion = left / sum(pull.values())
        full = [name for name in hungry if portion * pull[name] >= room[name]] or list(hungry)
        for name in full:
            taken = min(portion * pull[name], room[name])
            kept[name] += taken
            left -= taken
            del hungry[name]
    return as_sparsity(whole({name: n - kept[name] for name, n in weights.items()}, zeros, room), weights)


def saliency(data: CalibrationData) -> dict[str, float]:
    """The mean of |weight| * |gradient of the answers' loss| over the weights of each block and over the batches.

    One backward a batch, for which the whole model is in memory; a matrix's gradient is used and dropped as soon as it
    is there.
    """
    sums = dict.fromkeys((block.name for block in data.blocks), 0.0)
    found: list[list[tuple[str, float]]] = []  # by batch
    answers = 0.0

    def hook(name: str) -> Any:
        def add(weight: Tensor) -> None:
            assert weight.grad is not None
            found[-1].append((name, answers * (weight.detach() * weight.grad).float().abs().sum().item()))
            weight.grad = None

        return add

    linears = [linear for block in data.blocks for linear in block.linears.values()]
    with data.places.whole(), learning(data.net, linears), torch.enable_grad():
        handles = [
            weight.register_post_accumulate_grad_hook(hook(block.name))
            for block in data.blocks
            for weight in {id(p): p for p in map(parameter, block.linears.values())}.values()  # experts share one
        ]
        try:
            for batch in data.counted(data.batches, "gradients"):
                answers = _answers(batch)
                found.append([])
                _loss(data, batch).backward()
        finally:
            for handle in handles:
                handle.remove()
    for name, value in chain(*team().in_order(found)):
        sums[name] += value
    asked = _asked(data)
    return {name: sums[name] / (asked * n) for name, n in data.weights.items()}


@torch.no_grad()
def zeroth_order(data: CalibrationData) -> dict[str, float]:
    """|L(w + e z) - L(w - e z)| / 2e with z drawn by the seed for each block and batch, meaned over the batches.

    That is the size of the block's gradient; divided by the root of the number of weights it is that of one weight,
    so that large and small blocks compare. The weights are put back bit by bit. Costs two forwards a block and batch.
    """
    random = torch.Generator().manual_seed(data.seed)
    asked, scores, batches = _asked(data), dict[str, float](), team().own(data.batches)
    with data.places.whole(), learning(data.net, ()):
        for block in data.counted(data.blocks, "perturbing"):
            linears, slopes = list(block.linears.values()), list[float]()
            before = [linear.weight.detach().clone() for linear in linears]
            for batch in batches:
                z = [torch.randn(weight.shape, generator=random).to(weight.device) for weight in before]
                if batch is not None:
                    up, down = (_loss_at(data, batch, linears, before, z, step) for step in (STEP, -STEP))
                    slopes.append(_answers(batch) * abs(up - down) / (2 * STEP))
            slope = sum(team().in_order(slopes))
            scores[block.name] = slope / asked / math.sqrt(sum(weight.numel() for weight in before))
    return scores


def _loss_at(
    data: CalibrationData,
    batch: Mapping[str, Any],
    linears: list[nn.Linear | AsLinear],
    before: list[Tensor],
    z: list[Tensor],
    by: float,
) -> float:
    try:
        for linear, weight, direction in zip(linears, before, z, strict=True):
            linear.weight.copy_(weight.float() + by * direction)
        return _loss(data, batch).item()
    finally:
        for linear, weight in zip(linears, before, strict=True):
            linear.weight.copy_(weight)


def _loss(data: CalibrationData, batch: Mapping[str, Any]) -> Tensor:
    """The model's own loss: the cross-entropy of the answers."""
    loss = data.net(**to_device(dict(batch), data.net), use_cache=False).loss
    if loss is None:
        raise RessaError(f"{type(data.net).__name__} computes no loss from labels: choose allocation owl or dlp")
    return loss


def _asked(data: CalibrationData) -> float:
    """The answer tokens of all processes' batches."""
    return sum(team().exchange(sum(map(_answers, data.batches))))


def _answers(batch: Mapping[str, Any]) -> float:
    return float((batch["labels"] != IGNORED).sum())
