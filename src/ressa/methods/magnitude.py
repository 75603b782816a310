"""Magnitude: small weights matter least. Needs no data; the baseline of all others (Han et al. 2015).

Shapes: O outputs, I inputs. Paper: arXiv 1506.02626.
"""

from __future__ import annotations

from torch import Tensor

from ressa.patterns import Pattern
from ressa.statistics import Cost, needs


@needs(None, by_row=True, bare_weights=True, cost=Cost(weights=2.85))
def magnitude(weight_OI: Tensor, inputs: None, pattern: Pattern) -> Tensor:
    """`weight_OI` with zeros where |weight| is lowest."""
    return weight_OI.where(pattern.keep(weight_OI.abs().float()), 0)
