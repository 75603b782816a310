"""Uniform: every block the same sparsity."""

from __future__ import annotations

from collections.abc import Mapping

from ressa.allocation.budget import as_sparsity, whole


def uniform(scores: Mapping[str, float], weights: Mapping[str, int], zeros: int) -> dict[str, float]:
    """{block: sparsity}, equal but for the rounding that makes the sum exact. Scores are not looked at."""
    even = zeros / sum(weights.values())
    return as_sparsity(whole({name: even * n for name, n in weights.items()}, zeros, weights), weights)
