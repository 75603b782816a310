"""Magnitude over many matrices: the smallest weights of a whole part or model go, wherever they stand.

Shapes: O outputs, I inputs, M matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ressa.allocation.budget import as_sparsity
from ressa.errors import RessaError

LOW = 16  # bits of a float32 that are looked at the second time, 15 and no sign the first


def magnitude(scores: Mapping[str, Tensor], weights: Mapping[str, int], zeros: int) -> dict[str, float]:
    """{linear: sparsity} of the `zeros` smallest |weight| of all linears, ties by position; `scores` are the weights.

    The edge is found by counting the numbers float32 has, in two rounds over the matrices, one after the other: they
    may come from files. The largest weight of each matrix stays: a matrix of zeros alone would cut the model in two.
    """
    most_M = torch.tensor([weights[name] - 1 for name in scores])
    upper = _counted(scores, lambda bits: bits >> LOW, 1 << 31 - LOW)
    first = _edge(upper.cumsum(1), most_M, zeros)
    before_M = upper[:, :first].sum(1)
    fine = _counted(scores, lambda bits: (bits & (1 << LOW) - 1)[bits >> LOW == first], 1 << LOW)
    ends = before_M[:, None] + fine.cumsum(1)
    low = _edge(ends, most_M, zeros)
    counts_M = (ends[:, low - 1] if low else before_M).minimum(most_M)
    counts, left = dict(zip(scores, counts_M.tolist(), strict=True)), zeros - int(counts_M.sum())
    for name, end in zip(scores, ends[:, low].minimum(most_M).tolist(), strict=True):
        more = min(left, end - counts[name])
        counts[name] += more
        left -= more
    if left:
        raise RessaError(f"{zeros:,} zeros are more than {len(counts)} matrices can hold: ask for less")
    return as_sparsity(counts, weights)


def _counted(scores: Mapping[str, Tensor], bucket: Callable[[Tensor], Tensor], buckets: int) -> Tensor:
    """How many weights of each matrix lie in each bucket of the bits of |weight| as float32, (M, buckets)."""
    found = [
        torch.bincount(bucket(weight_OI.detach().float().abs().flatten().view(torch.int32)), minlength=buckets)
        for _, weight_OI in scores.items()
    ]
    return torch.stack(found).cpu()


def _edge(ends: Tensor, most_M: Tensor, zeros: int) -> int:
    """The first bucket up to which there are `zeros` weights; the last one, if there are fewer."""
    enough = ends.minimum(most_M[:, None]).sum(0) >= zeros
    return int(enough.int().argmax()) if enough.any() else ends.shape[1] - 1
