"""RIA: a weight matters by its share of what its input sends and its output receives (Zhang et al. 2024).

Shapes: O outputs, I inputs. Paper: "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models", ICLR 2024, openreview.net/forum?id=Tr0lPx9woF.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ressa.patterns import Pattern
from ressa.statistics import Cost, Gram, InputNorm, Moments, needs

TINY = torch.finfo(torch.float32).tiny


@needs(InputNorm, cost=Cost(weights=4))
def ria(weight_OI: Tensor, inputs: InputNorm | Moments | Gram, pattern: Pattern, *, power: float = 0.5) -> Tensor:
    """`weight_OI` with zeros where relative importance times its input's norm is lowest; no update, no permutation.

    Relative importance is |weight| over the sum of its column plus |weight| over the sum of its row. The norm counts
    to the `power` a of the paper: at 0 inputs do not matter. The authors compare the whole matrix:
    Unstructured(s, "matrix").
    """
    size_OI = weight_OI.float().abs()
    column_1I, row_O1 = (size_OI.sum(dim=dim, keepdim=True).clamp(min=TINY) for dim in (0, 1))  # empty ones: 0, not 0/0
    return weight_OI.where(pattern.keep((size_OI / column_1I + size_OI / row_O1) * inputs.norm_I**power), 0)
