"""Whole zeros from shares: what is given out adds up to the budget to the last weight."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ressa.errors import RessaError

MOST = 0.99  # no block loses more, unless the whole budget does


def whole(shares: Mapping[str, float], total: int, most: Mapping[str, int]) -> dict[str, int]:
    """`shares`, whose sum is `total` but for rounding, as whole numbers whose sum it is; none below 0 or above `most`.

    The largest remainders are rounded up (Hamilton's method), among equal ones the first.

    >>> whole({"a": 1.5, "b": 1.5, "c": 4.0}, 7, {"a": 9, "b": 9, "c": 9})
    {'a': 2, 'b': 1, 'c': 4}
    """
    counts = {name: min(max(math.floor(share), 0), most[name]) for name, share in shares.items()}
    left = total - sum(counts.values())
    step = 1 if left > 0 else -1
    by_remainder = sorted(shares, key=lambda name: step * (counts[name] - shares[name]))
    while left:
        before = left
        for name in by_remainder:
            if left and 0 <= counts[name] + step <= most[name]:
                counts[name] += step
                left -= step
        if left == before:
            raise RessaError(f"{total:,} zeros do not fit where at most {sum(most.values()):,} may be: ask for less")
    return counts


def caps(weights: Mapping[str, int], zeros: int, most: float = MOST) -> dict[str, int]:
    """How many zeros each block may have: a share `most` of its weights, or its even share if that is more."""
    even = zeros / sum(weights.values())
    return {name: max(math.floor(min(most, MOST) * n), math.ceil(even * n)) for name, n in weights.items()}


def as_sparsity(counts: Mapping[str, int], weights: Mapping[str, int]) -> dict[str, float]:
    """Zeros as shares; `round(share * weights)` is the count again."""
    return {name: counts[name] / weights[name] for name in weights}


def spread_out(worth: Mapping[str, float], weights: Mapping[str, int], zeros: int, spread: float) -> dict[str, float]:
    """Sparsities in a line from the block of least `worth` to the one of most, which gets 2 * `spread` less.

    Blocks of equal worth get the same. Where the line leaves [0, MOST] it is cut and the rest of it shifted, so that
    all zeros find a place.

    >>> spread_out({"a": 0.0, "b": 1.0}, {"a": 100, "b": 100}, 100, spread=0.1)
    {'a': 0.6, 'b': 0.4}
    """
    low, high = min(worth.values()), max(worth.values())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RessaError("the scores of the blocks hold NaN or infinity: load the model in float32 or bfloat16")
    most, length = caps(weights, zeros), high - low
    line = {name: 2 * spread * ((high - value) / length if length else 0.0) for name, value in worth.items()}

    def shifted(by: float) -> dict[str, float]:
        return {name: min(max((line[name] + by) * n, 0.0), most[name]) for name, n in weights.items()}

    lower, upper = -2 * spread - 1, 2.0
    for _ in range(100):  # halves until float has no number in between
        middle = (lower + upper) / 2
        if sum(shifted(middle).values()) < zeros:
            lower = middle
        else:
            upper = middle
    return as_sparsity(whole(shifted(upper), zeros, most), weights)
