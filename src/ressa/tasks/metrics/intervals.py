"""How sure a score is, and whether two models differ: bootstrap intervals and a paired randomisation test.

A metric is a function of sums: each unit (a question, an image, a group of rotated questions) gives a row of numbers,
and the score is computed from the mean row. So a resampled score is a matrix product, for BLEU or F1 too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
CHUNK = 50  # draws at a time: (CHUNK, units) counts fit anywhere


def _first(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


@dataclass(frozen=True)
class Measured:
    """What a metric saw of one model.

    rows: (units, K) numbers; `score` maps mean rows (..., K) to scores (...). `of` names what a unit is; the units of
    two models that are compared must be the same. `fixed` is a corpus score that no sums give (METEOR).
    """

    rows: np.ndarray
    score: Callable[[np.ndarray], np.ndarray] = _first
    of: tuple[str, ...] = ()
    fixed: float | None = None

    @property
    def value(self) -> float:
        return self.fixed if self.fixed is not None else float(self.score(self.rows.mean(0)))


def interval(measured: Measured, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3) of a score.

    Units are drawn with replacement; the seed is fixed, so that the same answers give the same interval.
    """
    scores = np.concatenate([measured.score(means) for (means,) in _resampled([measured.rows], draws, seed)])
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compared(ours: Measured, theirs: Measured, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> dict:
    """{"difference": ours minus theirs, "interval": [low, high], "p": two-sided} on the same units.

    The interval is a paired bootstrap (the same units are drawn for both; Koehn 2004). p is approximate randomisation
    (Noreen 1989; Riezler & Maxwell 2005): the share of random exchanges of the two models' rows, unit by unit, that
    differ at least as much as the models do, both counted with the models' own.

    Raises:
        ValueError: the two saw different numbers of units.
    """
    if ours.rows.shape != theirs.rows.shape:
        raise ValueError(f"{len(ours.rows)} and {len(theirs.rows)} units cannot be paired")
    pairs = [ours.rows, theirs.rows]
    drawn = np.concatenate([ours.score(a) - ours.score(b) for a, b in _resampled(pairs, draws, seed)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    seen = float(ours.score(ours.rows.mean(0)) - ours.score(theirs.rows.mean(0)))
    rng, extreme, both = np.random.default_rng(seed), 0, ours.rows + theirs.rows
    for start in range(0, draws, CHUNK):
        swapped = rng.integers(0, 2, (min(CHUNK, draws - start), len(both)))
        first = (ours.rows.sum(0) + swapped @ (theirs.rows - ours.rows)) / len(both)
        second = both.mean(0) - first
        extreme += int((np.abs(ours.score(first) - ours.score(second)) >= abs(seen) - 1e-12).sum())
    return {"difference": seen, "interval": [float(low), float(high)], "p": (extreme + 1) / (draws + 1)}


def _resampled(tables: Sequence[np.ndarray], draws: int, seed: int):
    """Chunks of mean rows of each table, the same units drawn for all: each (chunk, K)."""
    rng, units = np.random.default_rng(seed), len(tables[0])
    for start in range(0, draws, CHUNK):
        picked = rng.integers(0, units, (min(CHUNK, draws - start), units))
        counts = np.stack([np.bincount(row, minlength=units) for row in picked]) / units
        yield tuple(counts @ table for table in tables)
