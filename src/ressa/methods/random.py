"""Random: which weights go is drawn by lot. The floor that every method has to beat.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ressa.patterns import Pattern
from ressa.statistics import Cost, needs


@needs(None, cost=Cost(weights=2.85))
def random(weight_OI: Tensor, inputs: None, pattern: Pattern, *, seed: int = 0) -> Tensor:
    """`weight_OI` with zeros drawn by lot; weights that are zero already go first, so that counts stay exact.

    The draw depends on `seed` and on the weight itself: layers of one shape differ, and no order of layers matters.
    """
    # on the CPU: one generator gives the same numbers wherever the weight lies, and the global one is left alone
    generator = torch.Generator().manual_seed(int.from_bytes(_digest(weight_OI, seed), "little"))
    score_OI = torch.rand(weight_OI.shape, generator=generator).to(weight_OI.device)
    score_OI.masked_fill_(weight_OI == 0, -1)
    return weight_OI.where(pattern.keep(score_OI), 0)


def _digest(weight_OI: Tensor, seed: int) -> bytes:
    values = weight_OI.detach().float().cpu().contiguous().numpy().data
    return hashlib.blake2b(values, key=str(seed).encode(), digest_size=8).digest()
