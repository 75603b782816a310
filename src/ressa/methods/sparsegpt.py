"""SparseGPT: prune from left to right, and let the weights further right make up for it (Frantar & Alistarh 2023).

Shapes: O outputs, I inputs, S inputs of one slab. Paper: arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ressa.patterns import Pattern
from ressa.statistics import Cost, Gram, needs

SLAB = 128  # inputs pruned before the rest of the matrix is updated, in one product
FEW = 16  # inputs pruned before the rest of the slab is updated, likewise


@needs(Gram, by_row=True, cost=Cost(weights=4, beside=0, making=3, products=0.5, factors=4 / 3))
def sparsegpt(weight_OI: Tensor, inputs: Gram, pattern: Pattern, *, damp: float = 0.01) -> Tensor:
    """`weight_OI` with zeros, the weights that stay moved so that the outputs stay.

    An unstructured pattern is chosen slab by slab among the weights as they then are, N:M group by group. The authors
    compare all rows of a slab with one another: that is Unstructured(s, "matrix"); "row" gives every row its own count.
    `damp` is added to the Gram's diagonal, as a share of its mean.
    """
    factor_II = inputs.inverse_factor(damp)
    weight_IO = weight_OI.T.to(torch.float32, memory_format=torch.contiguous_format, copy=True)  # a step is then a row
    weight_IO[inputs.norm_I == 0] = 0  # an input that is always zero cannot make up for others
    width = len(weight_IO)
    slab = max(SLAB - SLAB % pattern.columns, pattern.columns)  # whole N:M groups
    for a in range(0, width, slab):
        b = min(a + slab, width)
        error_SO = _prune_slab(weight_IO[a:b], factor_II[a:b, a:b], pattern, a)
        weight_IO[b:].addmm_(factor_II[a:b, b:].T, error_SO, alpha=-1)
    return weight_IO.T.to(weight_OI.dtype).contiguous()


def _prune_slab(weight_SO: Tensor, factor_SS: Tensor, pattern: Pattern, start: int) -> Tensor:
    """Prunes the slab that begins at input `start` in place; returns what the inputs after it must make up for."""
    pivot_S1, width = factor_SS.diagonal()[:, None], len(weight_SO)
    per_weight_SS = factor_SS / pivot_S1  # what an input that goes asks of those after it
    step = pattern.columns if pattern.columns > 1 else width
    few = max(FEW - FEW % step, step) if step < width else FEW
    gone_SO = torch.empty_like(weight_SO)
    for a in range(0, width, few):
        b = min(a + few, width)
        for j, weight_O, gone_O in zip(range(a, b), weight_SO[a:b], gone_SO[a:b], strict=True):
            if j % step == 0:
                keep_OS = pattern.keep((weight_SO[j : j + step] / pivot_S1[j : j + step]).abs_().T, start + j)
                drop_SO = keep_OS.T.logical_not().to(weight_SO.dtype)
            torch.mul(weight_O, drop_SO[j % step], out=gone_O)
            weight_SO[j + 1 : b].addr_(per_weight_SS[j, j + 1 : b], gone_O, alpha=-1)
        weight_SO[a:b] -= gone_SO[a:b]
        weight_SO[b:].addmm_(per_weight_SS[a:b, b:].T, gone_SO[a:b], alpha=-1)
    return gone_SO.div_(pivot_S1)
