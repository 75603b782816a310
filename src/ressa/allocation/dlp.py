"""DLP: a block whose typical score is low is the important one, for its few high ones matter (Chen et al. 2025).

Shapes: O outputs, I inputs. Paper: arXiv 2505.23807, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ressa.allocation.budget import spread_out


def median(scores: Sequence[Tensor]) -> float:
    """The median of a block's scores, (O, I) of each linear: its unimportance.

    The authors' program takes the mean in its unstructured path, whatever its option says; the paper, the median.
    """
    return torch.cat([score_OI.flatten() for score_OI in scores]).median().item()


def dlp(scores: Mapping[str, float], weights: Mapping[str, int], zeros: int, spread: float = 0.15) -> dict[str, float]:
    """{block: sparsity} from {block: unimportance m}, within S +- `spread` (alpha). A higher m, more zeros.

    Importance is 1 - m / sum(m); stretched to a length of 2 * alpha, only that it falls with m is left of it.
    """
    return spread_out({name: -score for name, score in scores.items()}, weights, zeros, spread)
