"""ALPS: let the choice of weights settle while the penalty on the others rises, then solve exactly (Meng et al. 2024).

Shapes: O outputs, I inputs. Paper: arXiv 2406.07831, section 3 and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ressa.methods._refit import refit
from ressa.methods.admm import step
from ressa.patterns import Pattern
from ressa.statistics import Cost, Gram, needs

RHO, RISE, EVERY = 0.1, 1.1, 3  # the penalty at first, and its rise after so many iterations
AT_LEAST, SETTLED = 30, 3e-4  # iterations, after which fewer changes than this share of the kept weights end it
TURNS, REFIT = 45, 65  # iterations of both on the embedded model; at most 300 and 900
COST = Cost(weights=13, kept=1, beside=2, making=4.1, products=TURNS + REFIT, factors=9, squares=TURNS / EVERY)


@needs(Gram, by_row=True, cost=COST)
def alps(weight_OI: Tensor, inputs: Gram, pattern: Pattern, *, damp: float = 0.01, iterations: int = 300) -> Tensor:
    """`weight_OI` with zeros, the weights that stay being the least-squares answer (`refit`) for that choice.

    ADMM as in `admm`, from Wanda's choice, but with a penalty that starts low and rises: early on weights come and go
    freely. It rises by a tenth every three iterations, the gentlest of the authors' three paces: theirs, which hurry
    while much changes, end with a layer error 2 to 8 % higher. `iterations` is a limit: it ends once the choice has
    settled. `damp` is added to the Gram's diagonal, as a share of each input's mean square. One eigendecomposition
    serves every penalty, and all linears that read the same input.
    """
    norm_I, scale_I = inputs.norm_I, inputs.scale_I
    value_I, vector_II = inputs.once("eigen", lambda: torch.linalg.eigh(inputs.unit_gram_II))
    value_I = value_I.clamp(min=0) + damp
    mixed_OI = target_OI = weight_OI.float() * norm_I
    keep_OI, rho = pattern.keep(target_OI.abs()), RHO
    for turn in range(0, iterations, EVERY):
        before_OI = keep_OI
        shrink_II = (vector_II * (rho / (value_I + rho))) @ vector_II.T
        for _ in range(min(EVERY, iterations - turn)):
            mixed_OI = step(mixed_OI, keep_OI, target_OI, shrink_II)
            keep_OI = pattern.keep(mixed_OI.abs())
        if turn + EVERY >= AT_LEAST and (keep_OI != before_OI).sum() <= SETTLED * keep_OI.sum():
            break
        rho *= RISE
        mixed_OI = mixed_OI.where(keep_OI, mixed_OI / RISE)  # off the choice it is U = multipliers / rho
    return refit(weight_OI, mixed_OI.div_(scale_I).where(keep_OI, 0), inputs, damp=damp)
