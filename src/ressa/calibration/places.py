"""Where the weights of blocks are while these do not run: in memory, or in files (`model.streamed`)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from ressa.calibration.tensors import swap
from ressa.model.structure import Block


class Places(Protocol):
    """What a walk asks of them. `go_dense`: a block that was changed runs as when it was told to be `remember`ed."""

    def present(self, block: Block, *, dense: bool = False) -> AbstractContextManager[None]: ...

    def standing_in(self) -> AbstractContextManager[None]: ...

    def remember(self, block: Block) -> None: ...

    def go_dense(self, block: Block) -> None: ...

    def go_changed(self, block: Block) -> None: ...


class InMemory:
    """All blocks are there all the time."""

    def __init__(self) -> None:
        self._dense: dict[str, list[Tensor]] = {}
        self._changed: dict[str, list[Tensor]] = {}

    def present(self, block: Block, *, dense: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def standing_in(self) -> AbstractContextManager[None]:
        return nullcontext()

    def remember(self, block: Block) -> None:
        self._dense[block.name] = [weight.detach().clone() for weight in block.module.parameters()]

    def go_dense(self, block: Block) -> None:
        self._changed[block.name] = swap(block.module, self._dense.pop(block.name))

    def go_changed(self, block: Block) -> None:
        swap(block.module, self._changed.pop(block.name))
