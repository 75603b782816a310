"""Blocks that are in memory all the time, and what a walk asks of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ressa.model.structure import Block


class InMemory:
    """All blocks are there all the time."""

    def __init__(self) -> None:
        self._dense: dict[str, list[Tensor]] = {}
        self._changed: dict[str, list[Tensor]] = {}

    def present(self, block: Block, *, dense: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def standing_in(self) -> AbstractContextManager[None]:
        return nullcontext()

    def settle(self, tree: Any) -> None:
        pass

    def remember(self, block: Block) -> None:
        self._dense[block.name] = [weight.detach().clone() for weight in block.module.parameters()]

    def go_dense(self, block: Block) -> None:
        self._changed[block.name] = swap(block.module, self._dense.pop(block.name))

    def go_changed(self, block: Block) -> None:
        swap(block.module, self._changed.pop(block.name))


def swap(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    """Puts `tensors` into the module's parameters; returns what they were."""
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with torch.no_grad():
        for parameter, tensor in zip(module.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
    return before
