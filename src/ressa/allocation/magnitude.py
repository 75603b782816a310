"""Magnitude over many matrices: the smallest weights of a whole part or model go, wherever they stand.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ressa.allocation.budget import as_sparsity
from ressa.errors import RessaError

INFINITE = 0x7F800000  # the bits of float32's infinity


def magnitude(scores: Mapping[str, Tensor], weights: Mapping[str, int], zeros: int) -> dict[str, float]:
    """{linear: sparsity} of the `zeros` smallest |weight| of all linears, ties by position; `scores` are the weights.

    The edge is found by halving the numbers float32 has, so that no second copy of the weights is made. The largest
    weight of each matrix stays: a matrix of zeros alone would cut the model in two.
    """
    low, high = 0, INFINITE
    while low < high:
        middle = (low + high) // 2
        if sum(_up_to(weight_OI, middle) for weight_OI in scores.values()) >= zeros:
            high = middle
        else:
            low = middle + 1
    counts = {name: _up_to(weight_OI, low - 1) for name, weight_OI in scores.items()}
    left = zeros - sum(counts.values())
    for name, weight_OI in scores.items():
        more = min(left, _up_to(weight_OI, low) - counts[name])
        counts[name] += more
        left -= more
    if left:
        raise RessaError(f"{zeros:,} zeros are more than {len(counts)} matrices can hold: ask for less")
    return as_sparsity(counts, weights)


def _up_to(weight_OI: Tensor, bits: int) -> int:
    """How many |weights| are at most the float32 of these bits (not counting the largest, which stays)."""
    if bits < 0:
        return 0
    edge = torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()
    return min(int((weight_OI.detach().float().abs() <= edge).sum()), weight_OI.numel() - 1)
