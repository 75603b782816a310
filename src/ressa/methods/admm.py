"""ADMM-Grad: drop more weights at each turn, while those that stay are pulled to the least-squares answer (Boža 2024).

Shapes: O outputs, I inputs. Paper: arXiv 2401.02938, section 3 and algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ressa.patterns import NofM, Pattern
from ressa.statistics import Cost, Gram, needs

RHO = 1.0  # how strongly the two copies of the weights are held together; the inputs have norm one


@needs(Gram, by_row=True, cost=Cost(weights=5.3, beside=0, making=3, products=20, factors=1))
def admm(weight_OI: Tensor, inputs: Gram, pattern: Pattern, *, damp: float = 0.1, iterations: int = 20) -> Tensor:
    """`weight_OI` with zeros, the weights that stay moved so that the outputs stay.

    The weights are those of inputs scaled to norm one, where magnitude is Wanda's score: the first choice is Wanda's.
    For three quarters of the `iterations` ever more weights are dropped, chosen anew each time; then the choice is
    frozen. `damp` is added to the Gram's diagonal, as a share of each input's mean square: it holds weights where they
    were. One inverse of the Gram serves all linears that read the same input.
    """
    norm_I, scale_I = inputs.norm_I, inputs.scale_I
    shrink_II = inputs.once(("admm", damp), lambda: _shrink(inputs.unit_gram_II, damp))
    mixed_OI = target_OI = weight_OI.float() * norm_I
    keep_OI = pattern.keep(target_OI.abs())
    choices = iterations * 3 // 4
    for turn in range(iterations):
        if turn < choices:
            share = 1 - (1 - (turn + 1) / choices) ** 3
            keep_OI = looser(pattern, share).keep(mixed_OI.abs())
        mixed_OI = step(mixed_OI, keep_OI, target_OI, shrink_II)
    return mixed_OI.div_(scale_I).where(keep_OI, 0).to(weight_OI.dtype)


def looser(pattern: Pattern, share: float) -> Pattern:
    """The pattern that drops only a `share`, above 0, of what `pattern` drops; all of it at 1.

    N:M goes by way of larger N. The author spares the N largest of each group and drops of the others by one threshold
    for the matrix: a layer error 2 % higher at 2:4 and 5 % at 1:4 (means of 30 random layers of 160 correlated inputs).
    """
    if isinstance(pattern, NofM):
        return NofM(pattern.m - math.ceil((pattern.m - pattern.n) * share), pattern.m)
    return replace(pattern, sparsity=pattern.sparsity * share)


def step(mixed_OI: Tensor, keep_OI: Tensor, target_OI: Tensor, shrink_II: Tensor) -> Tensor:
    """One iteration of ADMM, in one product of matrices.

    `mixed` is V + U, a free copy of the weights and the multipliers. Z, the copy with zeros, is `mixed` where it is
    kept, and U is the rest of it; so Z - U is `mixed` with signs, and V = (target H + rho (Z - U)) (H + rho)^-1 is
    target + (Z - U - target) rho (H + rho)^-1, whose last factor is `shrink_II`.
    """
    pull_OI = mixed_OI.where(keep_OI, -mixed_OI).sub_(target_OI)
    return torch.addmm(target_OI, pull_OI, shrink_II).add_(mixed_OI.masked_fill(keep_OI, 0))


def _shrink(gram_II: Tensor, damp: float) -> Tensor:
    """rho (H + rho)^-1 of the damped Gram H, (I, I); rho makes it positive definite without any damping."""
    gram_II.diagonal().add_(damp + RHO)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram_II)).mul_(RHO)
