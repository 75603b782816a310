"""Which weights stay: Unstructured(0.5) or NofM(2, 4), and how people write them ("50%", "0.5", "2:4").

Shapes: O output features, I input features, G groups that are chosen apart, K weights that compete within one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ressa.errors import RessaError, unknown

Group = Literal["row", "even", "matrix"]
SHORT = 16  # scores in a group of an N:M pattern, which torch goes through side by side
FEW = 8  # scores in a group that are compared pair by pair
PIECE = 1 << 20  # scores that are looked at together: what is made of them on the way takes many times their memory


@dataclass(frozen=True)
class Unstructured:
    """The lowest share `sparsity` of every output row (or of the whole matrix) becomes zero.

    "row" rounds in each row. "even" lets rows differ by one weight, so that the whole matrix has its nearest count.

    >>> str(Unstructured(0.7)), Unstructured(0.7).dropped(10)
    ('70%', 7)
    """

    sparsity: float
    group: Group = "row"
    columns: ClassVar[int] = 1  # columns that must be chosen together

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:  # not (a or b): NaN fails it too
            raise _wrong(f"{self.sparsity:g}")
        if self.group not in get_args(Group):
            raise unknown("group", str(self.group), get_args(Group))

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.12g}%"

    def dropped(self, size: int) -> int:
        """How many of `size` competing weights become zero: the nearest whole number."""
        return round(size * self.sparsity)

    def keep(self, score_OI: Tensor, start: int = 0) -> Tensor:
        """True where a weight stays, (O, I) bool.

        `start` is for methods that choose a matrix slab by slab: the scores are of columns start, start + 1, ...;
        the counts of all slabs then add up to exactly those of the matrix chosen at once.
        """
        if self.group == "even":
            return self._keep_even(score_OI, start)
        rows, width = (1 if self.group == "row" else score_OI.shape[0]), score_OI.shape[1]
        drop = self.dropped(rows * (start + width)) - self.dropped(rows * start)
        return _drop_lowest(score_OI.reshape(-1, rows * width), drop).view_as(score_OI)

    def dropped_O(self, rows: int, size: int) -> Tensor:
        """How many of its `size` weights each of `rows` rows gives; if "even", dropped(rows * size) in all.

        floor(x + (r + 1/2) / R), summed over R rows, is floor(R * x + 1/2) (Hermite's identity).
        """
        if self.group != "even":
            return torch.full((rows,), self.dropped(size))
        part_O = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
        return (self.sparsity * size + part_O).floor().long()

    def _keep_even(self, score_OI: Tensor, start: int) -> Tensor:
        rows, width = score_OI.shape
        drop_O = (self.dropped_O(rows, start + width) - self.dropped_O(rows, start)).to(score_OI.device)
        keep_OI = torch.empty_like(score_OI, dtype=torch.bool)
        for drop in drop_O.unique().tolist():
            keep_OI[drop_O == drop] = _drop_lowest(score_OI[drop_O == drop], drop)
        return keep_OI

    def check(self, shape_OI: Sequence[int], name: str) -> None:
        """Fits every matrix."""

    def holds(self, weight_OI: Tensor) -> bool:
        """Whether every group has at least the zeros that the pattern asks for."""
        if self.group == "matrix":
            return weight_OI.numel() - int(weight_OI.count_nonzero()) >= self.dropped(weight_OI.numel())
        zeros_O = torch.cat([(piece == 0).sum(dim=1) for piece in _pieces(weight_OI)])
        return bool((zeros_O >= self.dropped_O(*weight_OI.shape).to(weight_OI.device)).all())


@dataclass(frozen=True)
class NofM:
    """`n` of every `m` neighbouring inputs are KEPT: NofM(2, 4) runs on sparse tensor cores, NofM(1, 4) is 75% zero.

    >>> str(NofM(2, 4)), NofM(1, 4).sparsity
    ('2:4', 0.75)
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise _wrong(str(self))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def columns(self) -> int:
        """Columns that must be chosen together."""
        return self.m

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def keep(self, score_OI: Tensor, start: int = 0) -> Tensor:
        """True where a weight stays, (O, I) bool. A slab may `start` at any multiple of m: groups are independent."""
        self.check(score_OI.shape, "the matrix")
        return _drop_lowest(score_OI.reshape(-1, self.m), self.m - self.n).view_as(score_OI)

    def check(self, shape_OI: Sequence[int], name: str) -> None:
        """Raises RessaError when the inputs of matrix `name` cannot be cut into groups of m."""
        if shape_OI[1] % self.m:
            raise RessaError(
                f"{self} does not fit {name}: its {shape_OI[1]} inputs are not a multiple of {self.m}; "
                f"leave its part out or prune it unstructured ({100 * self.sparsity:g}%)"
            )

    def holds(self, weight_OI: Tensor) -> bool:
        """Whether no group of m has more than n weights that are not zero."""
        if weight_OI.shape[1] % self.m:
            return False
        groups_GK = weight_OI.reshape(-1, self.m)
        return all(bool(((piece != 0).sum(dim=1) <= self.n).all()) for piece in _pieces(groups_GK))


Pattern = Unstructured | NofM


def parse(text: str | float, group: Group = "row") -> Pattern:
    """The pattern that a user wrote; RessaError, one line, when it is none. `group` matters to unstructured ones only.

    >>> parse("2:4"), parse("50%"), parse(0.5) == parse("0.5") == parse("50%")
    (NofM(n=2, m=4), Unstructured(sparsity=0.5, group='row'), True)
    """
    written = str(text).strip()
    if ratio := re.fullmatch(r"(\d+)\s*:\s*(\d+)", written):
        return NofM(int(ratio[1]), int(ratio[2]))
    # "e-2" and not "/ 100": 12.3% is then the same number as 0.123, to the last bit
    number = re.sub(r"\s*%$", "e-2", written)
    try:
        share = float(number)
    except ValueError:
        raise _wrong(written) from None
    if not 0 <= share < 1:
        raise _wrong(written)
    return Unstructured(share, group)


def _wrong(written: str) -> RessaError:
    return RessaError(
        f"sparsity '{written}' is neither a share of at least 0 and below 1 (0.5 or 50%) "
        "nor N:M with 0 < N < M, N weights kept of every M (2:4)"
    )


def _kth_lowest(score_GK: Tensor, k: int) -> Tensor:
    """The k-th lowest score of each row, (G, 1)."""
    if score_GK.is_cpu and score_GK.dtype == torch.float32 and score_GK.shape[1] > SHORT:
        array_GK = score_GK.numpy(force=True).copy()
        array_GK.partition(k - 1, axis=1)  # ten times as fast as torch here
        return torch.from_numpy(array_GK[:, k - 1 : k].copy())
    return score_GK.kthvalue(k, dim=1, keepdim=True).values


def _drop_lowest(score_GK: Tensor, drop: int) -> Tensor:
    """False at exactly the `drop` lowest scores of each row, (G, K); among equal scores the first ones go.

    Ties decide nothing but order: with a bare threshold, equal scores (a dead input, a zero row) all go or all stay.
    """
    if drop == 0:
        return torch.ones_like(score_GK, dtype=torch.bool)
    choose = _drop_of_few if score_GK.shape[1] <= FEW else _drop_of_many
    pieces = _pieces(score_GK)
    return choose(score_GK, drop) if len(pieces) == 1 else torch.cat([choose(piece, drop) for piece in pieces])


def _pieces(x_GK: Tensor) -> Sequence[Tensor]:
    """The rows of a matrix, few at a time."""
    return x_GK.split(max(PIECE // x_GK.shape[1], 1))


def _drop_of_few(score_GK: Tensor, drop: int) -> Tensor:
    """`_drop_lowest` by the rank of each score in its row, counted in comparisons of whole columns."""
    columns = score_GK.T.contiguous().unbind()
    rank = [torch.zeros_like(column_G, dtype=torch.uint8) for column_G in columns]
    for j, later_G in enumerate(columns):
        for i in range(j):
            ahead_G = columns[i] <= later_G
            rank[j] += ahead_G
            rank[i] += ahead_G.logical_not_()
    return torch.stack([rank_G >= drop for rank_G in rank], dim=1)


def _drop_of_many(score_GK: Tensor, drop: int) -> Tensor:
    edge_G1 = _kth_lowest(score_GK, drop)
    above_GK = score_GK > edge_G1
    if above_GK.sum() == len(score_GK) * (score_GK.shape[1] - drop):  # no ties: the rest would find the same
        return above_GK
    below_GK, ties_GK = score_GK < edge_G1, score_GK == edge_G1
    room_G1 = drop - below_GK.sum(dim=1, keepdim=True)
    return ~(below_GK | (ties_GK & (ties_GK.cumsum(dim=1) <= room_G1)))
