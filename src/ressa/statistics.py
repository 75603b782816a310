"""What a method may know of a layer's inputs: InputNorm, Moments or Gram, gathered batch by batch.

Shapes: T tokens, I input features, O output features. All are weighted means over tokens, from float32 sums: how the
tokens were cut into batches does not matter, and a token of weight 0 is not looked at (padding may even hold NaN).
What a batch adds is made by itself, in `parts` (ressa.addends), and then added, piece by piece (`take`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ressa import addends
from ressa.errors import RessaError, RessaWarning

RETRY_DAMPS = (0.01, 0.1, 1.0, 10.0)  # shares of the mean diagonal
AT_ONCE = 1 << 23  # weights whose rows are pruned at once, where each row is pruned alone and without a Gram
Made = TypeVar("Made")


@torch.no_grad()
def _add(statistic: Any, x: Tensor, weight: Tensor | None = None) -> None:
    """Adds inputs x (..., I) whose tokens count `weight` (broadcasts to x.shape[:-1]; None: one each)."""
    tokens, parts = statistic.parts(x, weight)
    for number, make in enumerate(parts):
        statistic.take(number, make(), tokens)


class InputNorm:
    """The root mean square of each input: enough for Wanda."""

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.tokens = 0.0
        self.squares_I = torch.zeros(in_features, dtype=torch.float32, device=device)

    add, parts = _add, staticmethod(addends.squares)

    def take(self, number: int, piece: Tensor, tokens: float) -> None:
        """Adds a piece; the first brings the tokens."""
        self.tokens += tokens
        self.squares_I += piece

    @property
    def norm_I(self) -> Tensor:
        return _mean(self.squares_I, self.tokens).sqrt()


class Moments:
    """Mean and variance of each input, merged batch by batch around the running mean (Chan, Golub, LeVeque 1979).

    Not E[x^2] - E[x]^2: in float32 that loses the variance of an input whose mean is far from zero.
    """

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.tokens = 0.0
        self._mean_I = torch.zeros(in_features, dtype=torch.float32, device=device)
        self._scatter_I = torch.zeros_like(self._mean_I)  # sum of squared deviations from the mean

    add, parts = _add, staticmethod(addends.moments)

    def take(self, number: int, piece: Tensor, tokens: float) -> None:
        """Adds a piece."""
        if tokens == 0:
            return
        batch_mean_I, scatter_I = piece
        shift_I = batch_mean_I - self._mean_I
        before, self.tokens = self.tokens, self.tokens + tokens
        self._mean_I += shift_I * (tokens / self.tokens)
        self._scatter_I += scatter_I
        self._scatter_I += shift_I.square() * (before * tokens / self.tokens)

    @property
    def mean_I(self) -> Tensor:
        return _known(self._mean_I, self.tokens)

    @property
    def variance_I(self) -> Tensor:
        return _mean(self._scatter_I, self.tokens)

    @property
    def norm_I(self) -> Tensor:
        return (self.variance_I + self.mean_I.square()).sqrt()


class Gram:
    """The mean of x xT: all that a layer's squared output error knows of its inputs.

    Of few tokens it is a rough estimate, which the weights would be fitted to: `shrinkage` (0: none) times inputs over
    tokens is added to its diagonal, as a share of that, which is a step towards inputs that do not correlate (Ledoit
    and Wolf 2004, whose share falls with the tokens alike).
    """

    shrinkage = 0.0

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.tokens = 0.0
        self.products_II = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self._made: dict[Hashable, Any] = {}

    add, parts = _add, staticmethod(addends.products)

    def take(self, number: int, piece: Tensor, tokens: float) -> None:
        """Adds a piece; the first brings the tokens."""
        a, b = addends.panels(len(self.products_II))[number]
        self.tokens += 0 if number else tokens
        self.products_II[a:b, a:] += piece
        self._made.clear()

    @property
    def gram_II(self) -> Tensor:
        for a, b in addends.panels(len(self.products_II)):
            self.products_II[b:, a:b] = self.products_II[a:b, b:].T
        mean_II = _mean(self.products_II, self.tokens)
        mean_II.diagonal().mul_(1 + self.shrinkage * len(mean_II) / self.tokens)
        return mean_II

    @property
    def norm_I(self) -> Tensor:
        return _mean(self.products_II.diagonal(), self.tokens).sqrt()

    @property
    def scale_I(self) -> Tensor:
        """`norm_I` to divide by: 1 where an input is always zero. RessaError if all are."""
        norm_I = self.norm_I
        if not norm_I.any():
            raise RessaError("a layer's calibration inputs are all zero: leave its part out or prune it by magnitude")
        return norm_I.where(norm_I > 0, 1)

    @property
    def unit_gram_II(self) -> Tensor:
        """The Gram of the inputs once each is scaled to norm one: 1 on the diagonal, 0 for one that is always zero."""
        scale_I = self.scale_I
        return self.gram_II.div_(scale_I).div_(scale_I[:, None])

    def shrink(self, share: float) -> None:
        """Sets `shrinkage`; what was made with another one is forgotten."""
        if share != self.shrinkage:
            self.shrinkage = share
            self._made.clear()

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` makes of this Gram, kept until more inputs come: linears that read the same input share it."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def inverse_factor(self, damp: float = 0.01) -> Tensor:
        """Upper triangular U_II with UT U = (gram + damp * mean(diagonal) * identity)^-1.

        Kept until more inputs come, so that linears which read the same input factor it once. Where too little damping
        leaves no positive definite matrix, more of it is tried on the pristine Gram, with a UserWarning. Well below
        1e-4, float32 rounding may pass for information: no damping is for Grams known to be well conditioned.
        """
        return self.once(("inverse factor", damp), lambda: _inverse_factor(self.gram_II.flip(0, 1), damp))


class GramAndMoments(Gram):
    """A Gram that knows mean and variance too: for a method that chooses by these and is refitted."""

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        super().__init__(in_features, device)
        self._moments = Moments(in_features, device)

    @staticmethod
    def parts(x: Tensor, weight: Tensor | None = None) -> addends.Parts:
        """Those of a Gram, then those of the moments."""
        tokens, panels = addends.products(x, weight)
        return tokens, panels + addends.moments(x, weight)[1]

    def take(self, number: int, piece: Tensor, tokens: float) -> None:
        """Adds a piece; the first brings the tokens."""
        panels = len(addends.panels(len(self.products_II)))
        if number < panels:
            super().take(number, piece, tokens)
        else:
            self._moments.take(number - panels, piece, tokens)

    @property
    def mean_I(self) -> Tensor:
        return self._moments.mean_I

    @property
    def variance_I(self) -> Tensor:
        return self._moments.variance_I


@dataclass(frozen=True)
class Cost:
    """What a method takes beside weights and statistics, for `inspect --plan`; the defaults are as much as the most.

    Memory is in float32 tensors, measured (tests/costs/test_pruning.py). All but `weights` count only where a Gram
    is needed.
    """

    weights: float = 13  # tensors of the size of the weights it works on
    kept: int = 1  # tensors of the size of a Gram, kept with it
    beside: int = 2  # such tensors while weights are pruned
    making: float = 5  # such tensors while what is kept is made
    products: float = 20  # products of the weights with one of them, 2 O I^2 operations each
    squares: float = 0  # products of two of them, 2 I^3 each
    factors: float = 1  # of I^3: Cholesky 1/3, its inverse 2/3, a triangular inverse 1, symmetric eigenvectors 9


class Method(Protocol):
    """A pruning method: a pure function, with the statistic of the inputs that it needs (None: no data).

    `by_row` says that it treats every output row alone, wherever the pattern does; `bare_weights`, that its score is
    |weight| alone, which compares across matrices.
    """

    needs: type[InputNorm] | type[Moments] | type[Gram] | None
    by_row: bool
    bare_weights: bool
    cost: Cost

    def __call__(self, weight_OI: Tensor, inputs: Any, pattern: Any, /, **settings: Any) -> Tensor: ...


def needs(
    statistic: type[InputNorm] | type[Moments] | type[Gram] | None,
    *,
    by_row: bool = False,
    bare_weights: bool = False,
    cost: Cost = Cost(),
) -> Callable[[Callable[..., Tensor]], Method]:
    """Marks a method with what calibration must gather for it, as in `Method`, and runs it without gradients."""

    def mark(function: Callable[..., Tensor]) -> Method:
        method: Any = torch.no_grad()(function)
        method.needs, method.by_row, method.bare_weights, method.cost = statistic, by_row, bare_weights, cost
        return method

    return mark


def _inverse_factor(reversed_II: Tensor, damp: float) -> Tensor:
    """One Cholesky of the reversed Gram gives gram = R RT with R upper, and U = R^-1 is the factor of the inverse."""
    diagonal_I = reversed_II.diagonal().clone()
    for tried in (damp, *(more for more in RETRY_DAMPS if more > damp)):
        reversed_II.diagonal().copy_(diagonal_I + tried * diagonal_I.mean())
        lower_II, failed = torch.linalg.cholesky_ex(reversed_II)
        if failed:
            continue
        if tried != damp:
            warnings.warn(
                f"the Gram matrix of a layer's inputs needed damping {tried:g}, not {damp:g}",
                RessaWarning,
                stacklevel=2,
            )
        del reversed_II  # at most three matrices at a time beside the Gram, which may be gigabytes
        eye_II = torch.eye(len(lower_II), dtype=lower_II.dtype, device=lower_II.device)
        inverse_II = torch.linalg.solve_triangular(lower_II, eye_II, upper=False)
        del lower_II, eye_II
        return inverse_II.flip(0, 1)
    raise RessaError(f"no damping up to {tried:g} makes the inputs' Gram matrix invertible: are all inputs zero?")


def _mean(total: Tensor, tokens: float) -> Tensor:
    return _known(total / (tokens or 1), tokens)


def _known(mean: Tensor, tokens: float) -> Tensor:
    """`mean` itself, once it is sure that there is one."""
    if tokens == 0:
        raise RessaError("no calibration token reached this layer: use more or other samples, or leave its part out")
    if not math.isfinite(mean.sum().item()):
        raise RessaError("a layer's calibration inputs hold NaN or infinity: load the model in float32 or bfloat16")
    return mean
