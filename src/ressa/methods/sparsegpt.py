"""SparseGPT: prune from left to right, and let the weights further right make up for it (Frantar & Alistarh 2023).

Shapes: O outputs, I inputs, S inputs of one slab. Paper: arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ressa.inputs import Gram, needs
from ressa.patterns import Pattern

SLAB = 128  # inputs pruned before the rest of the matrix hears of it, in one product
FEW = 16  # inputs pruned before the rest of the slab hears of it, likewise


@needs(Gram, by_row=True)
def sparsegpt(weight_OI: Tensor, inputs: Gram, pattern: Pattern, *, damp: float = 0.01) -> Tensor:
    """`weight_OI` with zeros, the weights that stay moved so that the outputs stay.

    An unstructured pattern is chosen slab by slab among the weights as they then are, N:M group by group. The authors
    compare all rows of a slab with one another: that is Unstructured(s, "matrix"); "row" gives every row its own count.
    `damp` is added to the Gram's diagonal, as a share of its mean.
    """
    factor_II = inputs.inverse_factor(damp)
    weight_IO = weight_OI.T.to(torch.float32, memory_format=torch.contiguous_format, copy=True)  # a step is then a row
    weight_IO[inputs.norm_I == 0] = 0  # an input that is always zero is never heard, and cannot make up for others
    width = len(weight_IO)
    slab = max(SLAB - SLAB % pattern.columns, pattern.columns)  # whole N:M groups
    for a in range(0, width, slab):
        b = min(a + slab, width)
        error_SO = _prune_slab(weight_IO[a:b], factor_II[a:b, a:b], pattern, a)
        weight_IO[b:] -= factor_II[a:b, b:].T @ error_SO
    return weight_IO.T.to(weight_OI.dtype).contiguous()


def _prune_slab(weight_SO: Tensor, factor_SS: Tensor, pattern: Pattern, start: int) -> Tensor:
    """Prunes the slab that begins at input `start` in place; returns what the inputs after it must make up for."""
    pivot_S, width = factor_SS.diagonal(), len(weight_SO)
    step = pattern.columns if pattern.columns > 1 else width
    few = FEW if pattern.columns == 1 or step % FEW == 0 else step
    error_SO = torch.empty_like(weight_SO)
    for a in range(0, width, few):
        b = min(a + few, width)
        if a % step == 0:
            score_OS = (weight_SO[a : a + step].T / pivot_S[a : a + step]).abs()
            gone_SO = ~pattern.keep(score_OS, start + a).T.contiguous()
        for j in range(a, b):
            gone_O = gone_SO[j % step]
            error_SO[j] = weight_SO[j] * gone_O / pivot_S[j]
            weight_SO[j].masked_fill_(gone_O, 0)
            weight_SO[j + 1 : b].addr_(factor_SS[j, j + 1 : b], error_SO[j], alpha=-1)
        weight_SO[b:].addmm_(factor_SS[a:b, b:].T, error_SO[a:b], alpha=-1)
    return error_SO
