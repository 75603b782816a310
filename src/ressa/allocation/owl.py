"""OWL: a block with more outliers among its scores keeps more weights (Yin et al. 2023).

Shapes: O outputs, I inputs. Paper: arXiv 2310.05175, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ressa.allocation.budget import spread_out

OUTLIER = 5.0  # M: an outlier is more than so many times the mean


def outliers(scores: Sequence[Tensor], threshold: float = OUTLIER) -> float:
    """The per cent of a block's scores, (O, I) of each linear, that exceed `threshold` times their common mean."""
    size = sum(score_OI.numel() for score_OI in scores)
    mean = sum(score_OI.double().sum().item() for score_OI in scores) / size
    return 100 * sum((score_OI > threshold * mean).sum().item() for score_OI in scores) / size


def owl(scores: Mapping[str, float], weights: Mapping[str, int], zeros: int, spread: float = 0.08) -> dict[str, float]:
    """{block: sparsity} from {block: outlier ratio}, within S +- `spread` (lambda). More outliers, fewer zeros.

    The authors' program centres the ratios by their plain mean, divides by max - min (0 / 0 where all are equal) and
    may ask for less than none (S < lambda); here the mean is weighted by the blocks' sizes, and both cases are exact.
    """
    return spread_out(scores, weights, zeros, spread)
