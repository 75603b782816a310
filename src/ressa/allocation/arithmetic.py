"""Arithmetic: sparsity rises with depth in equal steps, for what early blocks lose all later ones must make up for.

Paper: ATP (Huang et al. 2025), arXiv 2502.14770, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

from ressa.allocation.budget import spread_out


def arithmetic(
    scores: Mapping[str, float], weights: Mapping[str, int], zeros: int, spread: float = 0.1
) -> dict[str, float]:
    """{block: sparsity} from S - `spread` to S + `spread`, in the order of `weights`. Scores are not looked at.

    The paper's step beta is 2 * spread / (blocks - 1). It finds it by a few trials; 0 is uniform.
    """
    return spread_out({name: -float(at) for at, name in enumerate(weights)}, weights, zeros, spread)
