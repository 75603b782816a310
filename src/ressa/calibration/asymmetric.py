"""The asymmetric target: weights that, on the pruned prefix's inputs, come closest to the dense model's outputs.

A layer after pruned blocks reads X, the dense model's reads D at the same tokens. Fitting W' to |D WT - X W'T|² before
it is pruned lets it make up for what the blocks before it lost. Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ressa.calibration.gather import capture, same_input
from ressa.calibration.tokens import TokenWeights
from ressa.calibration.visit import Visit
from ressa.errors import RessaError
from ressa.statistics import Gram


@torch.no_grad()
def shifts(
    visit: Visit, dense: Visit, token_weights: Sequence[TokenWeights], grams: dict[str, Gram], damp: float = 0.1
) -> dict[str, Tensor]:
    """For each linear of the visited block the (I, I) matrix S with W' = W + W S; linears of one input share it.

    S = mean((d - x) xT) (gram + damp)^-1: zero where the prefix is not pruned.

    Args:
        visit, dense: the same block and batches, in the model that is being pruned and in its original (`walk_both`).
        grams: what `gather` found in `visit`; those of other linears are not looked for.
        damp: as a share of the mean of the Gram's diagonal.
    """
    products: dict[str, Tensor] = {}
    shared: dict[str, list[str]] = {}
    for call, original in zip(visit.calls, dense.calls, strict=True):
        (reads, given), (wanted, _) = capture(visit, call, grams), capture(dense, original, grams)
        crossed = {id(tensor) for tensor in given[1:]}
        for names in same_input(reads):
            shared[names[0]] = names
            for x, d in zip(reads[names[0]], wanted[names[0]], strict=True):
                if x.shape != d.shape:
                    raise RessaError(f"{names[0]} reads other tokens than in the dense model: leave asymmetric out")
                weights = token_weights[call.batch].of(visit.block, names[0], x, crossed=id(x) in crossed)
                products[names[0]] = products.get(names[0], 0) + _product(x, d, weights)
    found: dict[str, Tensor] = {}
    for first, names in shared.items():
        factor_II = grams[first].inverse_factor(damp)
        shift_II = (products[first] / grams[first].tokens) @ factor_II.T @ factor_II
        found |= dict.fromkeys(names, shift_II)
    return found


def _product(x: Tensor, d: Tensor, weights: Tensor | None) -> Tensor:
    """The sum of (d - x) xT over the tokens that count, (I, I), float32."""
    x_TI, d_TI = (y.reshape(-1, y.shape[-1]).float() for y in (x, d.to(x.device)))
    change_TI = d_TI - x_TI
    if weights is not None:
        counts_T = weights.reshape(-1).float().to(x.device)
        counted_T = counts_T != 0  # padding may hold NaN
        x_TI, change_TI = x_TI[counted_T], change_TI[counted_T] * counts_T[counted_T][:, None]
    return change_TI.T @ x_TI
