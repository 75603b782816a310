"""Wanda: a small weight on a loud input may matter more than a large one on a quiet input (Sun et al. 2023).

Shapes: O outputs, I inputs. Paper: arXiv 2306.11695.
"""

from __future__ import annotations

from torch import Tensor

from ressa.patterns import Pattern
from ressa.statistics import Cost, Gram, InputNorm, Moments, needs


@needs(InputNorm, by_row=True, cost=Cost(weights=2.85))
def wanda(weight_OI: Tensor, inputs: InputNorm | Moments | Gram, pattern: Pattern) -> Tensor:
    """`weight_OI` with zeros where |weight| times its input's norm is lowest (section 3, equation 1); no update."""
    return weight_OI.where(pattern.keep(weight_OI.abs().float().mul_(inputs.norm_I)), 0)
