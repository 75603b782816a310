"""DSnoT: move zeros until the layer's mean output is what it was (Zhang et al. 2023).

Shapes: O outputs, I inputs, R rows that still swap. Paper: arXiv 2310.08915, section 3. The share of a weight is what
it adds to the mean output; the error of a row is the sum of the shares it lost.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from ressa.errors import unknown
from ressa.methods.magnitude import magnitude
from ressa.methods.random import random
from ressa.methods.ria import ria
from ressa.methods.wanda import wanda
from ressa.patterns import Pattern
from ressa.statistics import Cost, Moments, needs

STARTS = {"magnitude": magnitude, "random": random, "ria": ria, "wanda": wanda}


@needs(Moments, cost=Cost(weights=7))
def dsnot(
    weight_OI: Tensor,
    inputs: Moments,
    pattern: Pattern,
    *,
    start: str = "wanda",
    cycles: int = 50,
    threshold: float = 5e-5,
) -> Tensor:
    """`weight_OI` with as many zeros in every row (N:M: in every group) as `start` puts there, some of them elsewhere.

    Every cycle, a row grows the lost weight of largest share / variance (equation 2) and drops the kept one of lowest
    Wanda score among those of opposite share (equation 3); in N:M, the lowest of the grown one's group. None moves
    twice. The row is done when its error is at most `threshold`, or before a swap would turn the error's sign.

    `start` is magnitude, random, ria or wanda. SparseGPT is none: the weights it keeps have moved to make up for just
    those that it dropped. The authors' threshold, 0.1, is of sums over 2048 tokens: here of means, it is 5e-5.
    """
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    kept_OI = STARTS[start](weight_OI, inputs, pattern) != 0
    share_OI = weight_OI.float() * inputs.mean_I
    error_O1 = share_OI.where(~kept_OI, 0).sum(dim=1, keepdim=True)
    share_OI *= error_O1.sign()  # as if all errors were positive: growing a positive share lowers them
    grow_OI = (share_OI / inputs.variance_I).where(~kept_OI & (share_OI > 0), -inf)
    drop_OI = (weight_OI.float().abs() * inputs.norm_I).where(kept_OI, inf)
    if pattern.columns == 1:
        drop_OI = drop_OI.where(share_OI < 0, inf)
    row_R, error_R = torch.arange(len(weight_OI), device=weight_OI.device), error_O1.abs().squeeze(1)
    for _ in range(cycles):
        grown_R, dropped_R, possible_R = _pair(grow_OI[row_R], drop_OI[row_R], pattern.columns)
        after_R = error_R - share_OI[row_R, grown_R] + share_OI[row_R, dropped_R]
        swaps_R = possible_R & (error_R > threshold) & (after_R > 0)
        row_R, grown_R, dropped_R, error_R = (x_R[swaps_R] for x_R in (row_R, grown_R, dropped_R, after_R))
        kept_OI[row_R, grown_R], kept_OI[row_R, dropped_R] = True, False
        grow_OI[row_R, grown_R], drop_OI[row_R, dropped_R] = -inf, inf
    return weight_OI.where(kept_OI, 0)


def _pair(grow_RI: Tensor, drop_RI: Tensor, together: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which weight every row grows, which it drops (of the same group if `together` > 1), and whether it has both."""
    gain_R1, grown_R1 = grow_RI.max(dim=1, keepdim=True)
    if together > 1:
        group_I = torch.arange(grow_RI.shape[1], device=grow_RI.device) // together
        drop_RI = drop_RI.where(group_I == grown_R1 // together, inf)
    cost_R1, dropped_R1 = drop_RI.min(dim=1, keepdim=True)
    return grown_R1[:, 0], dropped_R1[:, 0], ((gain_R1 > -inf) & (cost_R1 < inf))[:, 0]
