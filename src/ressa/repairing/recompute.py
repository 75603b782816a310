"""Blocks that keep nothing but their inputs from forward to backward, and run again there (Chen et al. 2016).

As transformers' gradient checkpointing, but in every architecture, and inside of a block's hooks: what listens to a
block hears it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from ressa.model.structure import Block, same_blocks


@contextmanager
def recomputed(blocks: Iterable[Block], model: nn.Module) -> Iterator[None]:
    """Within, the backward of these blocks of `model` computes them again.

    Args:
        blocks: as they were before adapters were put in; one that is a linear itself keeps but its input anyway.
    """
    wholes = [block for block in blocks if next(block.module.children(), None) is not None]
    modules = [cast(Any, block.module) for block in same_blocks(wholes, model)]
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
