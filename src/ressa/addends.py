"""What one batch adds to a statistic of inputs: made by itself, in pieces that are added afterwards.

So another process can make them, and where batches are added in one order the sums are the same, bit for bit, whoever
made them. A piece is made when it is called for: of a Gram only one panel is in memory besides.

Shapes: T tokens, I input features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

PANELS = 4  # of a Gram: with so many, its symmetry saves 3/8 of the work, and each is still one large product
Parts = tuple[float, list[Callable[[], Tensor]]]  # how much the tokens count, and what makes each piece


def squares(x: Tensor, weight: Tensor | None = None) -> Parts:
    """The sum of squares of each input, (I,)."""
    x_TI, tokens = _root_weighted(x, weight)
    return tokens, [lambda: x_TI.square().sum(dim=0)]


def moments(x: Tensor, weight: Tensor | None = None) -> Parts:
    """Mean and scatter of each input, (2, I)."""
    x_TI, weight_T1, tokens = _tokens(x, weight)
    return tokens, [partial(_mean_and_scatter, x_TI, weight_T1, tokens)]


def products(x: Tensor, weight: Tensor | None = None) -> Parts:
    """xT x, (I, I), in its `panels`."""
    x_TI, tokens = _root_weighted(x, weight)
    return tokens, [partial(_panel, x_TI, a, b) for a, b in panels(x_TI.shape[1])]


def panels(size: int) -> list[tuple[int, int]]:
    """First row and end of each panel; it begins at the diagonal, for what is left of that stands above it too."""
    width = -(-size // PANELS)
    return [(a, min(a + width, size)) for a in range(0, size, width)]


def _panel(x_TI: Tensor, a: int, b: int) -> Tensor:
    """Written into a tensor, so that autocast cannot turn it into a bfloat16 product."""
    panel = x_TI.new_empty(b - a, x_TI.shape[1] - a)
    return torch.mm(x_TI[:, a:b].T, x_TI[:, a:], out=panel)


def _mean_and_scatter(x_TI: Tensor, weight_T1: Tensor, tokens: float) -> Tensor:
    """The scatter is the sum of squared deviations from the mean."""
    mean_I = (x_TI * weight_T1).sum(dim=0) / (tokens or 1)
    return torch.stack([mean_I, ((x_TI - mean_I).square() * weight_T1).sum(dim=0)])


def _tokens(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """The tokens that count, float32 (T, I), their weights (T, 1) and the sum of these."""
    x_TI = x.reshape(-1, x.shape[-1])
    if weight is None or (weight == 1).all():
        return x_TI.float(), torch.ones(1, 1, device=x.device), float(len(x_TI))
    weight_T = weight.to(x.device, torch.float32).broadcast_to(x.shape[:-1]).reshape(-1)
    counts_T = weight_T != 0
    weight_T = weight_T[counts_T]
    return x_TI[counts_T].float(), weight_T[:, None], weight_T.sum().item()


def _root_weighted(x: Tensor, weight: Tensor | None) -> tuple[Tensor, float]:
    """The tokens that count, each times the root of its weight, and the sum of the weights."""
    x_TI, weight_T1, tokens = _tokens(x, weight)
    plain = weight is None or (weight_T1.numel() == 1 and weight_T1.item() == 1)
    return (x_TI if plain else x_TI * weight_T1.sqrt()), tokens
