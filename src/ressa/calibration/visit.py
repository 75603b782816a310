"""What a walk hands to its caller at every block: all calls of it, and the way to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ressa.model.structure import Block

Batch = Mapping[str, Any]


class StopForward(BaseException):
    """Raised by a hook within a block to end `Visit.run`: the rest of the block is not needed."""


@dataclass(frozen=True)
class Call:
    """One entry of one batch into a block, with the arguments the model gave."""

    batch: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Visit:
    """All batches stand at `block`; `calls` are all their entries into it, in the order of the batches.

    `onward`: what the first run of a call puts out is also what its batch goes on with; the block must run whole.
    """

    block: Block
    calls: tuple[Call, ...]
    onward: bool
    _execute: Callable[[Call], list[Any]] = field(repr=False)

    def run(self, call: Call) -> list[Tensor]:
        """Runs the block as it now is, with its hooks, and drops the output. Returns the tensors it was given.

        Raises:
            RessaError: the block remembers (a key-value cache) or overwrites its arguments: it cannot be run twice.
        """
        with torch.no_grad():
            return self._execute(call)
