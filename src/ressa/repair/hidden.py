"""Hidden-state distillation: every block of the student is to say what the dense block says, at every token.

The answer tokens alone are few; this asks something of each token of each block (SquareHead, Kurtic et al. 2023,
arXiv 2310.06927, equation 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ressa.calibration.outputs import apart
from ressa.calibration.tokens import token_weights
from ressa.model.structure import Block

Outputs = Mapping[str, Sequence[Tensor]]  # what `calibration.outputs_of` hears


def hidden_loss(
    ours: Outputs, theirs: Outputs, blocks: Sequence[Block], batch: Mapping[str, Any], config: Any
) -> Tensor:
    """The mean over `blocks` of |student - teacher|² / |teacher|², over the tokens that count, float32.

    Args:
        ours, theirs: what the blocks of student and teacher returned when both ran `batch`.
        config: the model's.
    """
    weights = token_weights(batch, config)
    found = []
    for block in blocks:
        for y, reference in zip(ours[block.name], theirs[block.name], strict=True):
            far, size = apart(y, reference, weights, block)
            found.append(far / size.clamp(min=torch.finfo(torch.float32).tiny))
    return torch.stack(found).mean()
