"""The asymmetric target: weights that, on the pruned prefix's inputs, come closest to the dense model's outputs.

A layer after pruned blocks reads X, the dense model's reads D at the same tokens. Fitting W' to |D WT - X W'T|² before
it is pruned lets it make up for what the blocks before it lost. Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ressa.addends import Parts
from ressa.calibration.gather import capture, same_input
from ressa.calibration.sums import Found, Owners, Sums, steps
from ressa.calibration.tokens import TokenWeights
from ressa.calibration.visit import Call, Visit
from ressa.errors import RessaError
from ressa.statistics import Gram


@torch.no_grad()
def shifts(
    visit: Visit,
    dense: Visit,
    token_weights: Sequence[TokenWeights],
    grams: dict[str, Gram],
    owners: Owners | None = None,
    damp: float = 0.1,
) -> dict[str, Tensor]:
    """For each linear of the visited block the (I, I) matrix S with W' = W + W S; linears of one input share it.

    S = mean((d - x) xT) (gram + damp)^-1: zero where the prefix is not pruned.

    Args:
        visit, dense: the same block and batches, in the model that is being pruned and in its original (`walk_both`).
        grams: what `gather` found in `visit`; those of other linears are not looked for.
        owners: which it found them for, and for which of them a process gets its shifts; None: `grams` are all.
        damp: as a share of the mean of the Gram's diagonal.
    """
    owners = owners or Owners(visit.block, Gram, grams)
    sums, original = Sums(Crossed, owners), dict(zip(map(id, visit.calls), dense.calls, strict=True))
    for calls in steps(visit.calls):
        found: Found = []
        for call in calls:
            weights, pair = token_weights[call.batch], (call, original[id(call)])
            found += _read_by_both(visit, dense, pair, weights, owners.known)
        sums.add(found)
    made: dict[int, Tensor] = {}
    for name, crossed in sums.statistics.items():
        if id(crossed) not in made:
            factor_II = grams[name].inverse_factor(damp)
            made[id(crossed)] = (crossed.products_II / grams[name].tokens) @ factor_II.T @ factor_II
    return {name: made[id(crossed)] for name, crossed in sums.statistics.items()}


class Crossed:
    """The sum of (d - x) xT over the tokens that count, (I, I), float32."""

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.products_II = torch.zeros(in_features, in_features, device=device)

    def add(self, x: Tensor, d: Tensor, weights: Tensor | None) -> None:
        """Adds inputs x (..., I) and what stands in their place in the dense model."""
        self.products_II += _product(x, d, weights)

    @staticmethod
    def parts(x: Tensor, d: Tensor | None = None, weights: Tensor | None = None) -> Parts:
        """What `add` adds."""
        return 0.0, [lambda: _product(x, x if d is None else d, weights)]

    def take(self, number: int, piece: Tensor, tokens: float) -> None:
        """Adds a piece; there is one."""
        self.products_II += piece


def _read_by_both(
    visit: Visit, dense: Visit, pair: tuple[Call, Call], weights: TokenWeights, only: Collection[str]
) -> Found:
    """What each linear reads in a call, beside what it reads in the dense model."""
    (reads, given), (wanted, _) = (capture(one, call, only) for one, call in zip((visit, dense), pair, strict=True))
    crossed = {id(tensor) for tensor in given[1:]}
    found: Found = []
    for first, *others in same_input(reads):
        both = list(zip(reads[first], wanted[first], strict=True))
        if any(x.shape != d.shape for x, d in both):
            raise RessaError(f"{first} reads other tokens than in the dense model: leave asymmetric out")
        told = [(x, d, weights.of(visit.block, first, x, crossed=id(x) in crossed)) for x, d in both]
        found.append(((first, *others), told))
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
