"""Where the weights of blocks are while these do not run: in memory, or in files (`model.streamed`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from ressa.model.structure import Block


class Places(Protocol):
    """What a walk asks of them.

    `go_dense`: a block that was changed runs as when it was to be `remember`ed. `settle`: these tensors now wait.
    """

    def present(self, block: Block, *, dense: bool = False) -> AbstractContextManager[None]: ...

    def whole(self) -> AbstractContextManager[None]: ...

    def standing_in(self) -> AbstractContextManager[None]: ...

    def settle(self, tree: Any) -> None: ...

    def remember(self, block: Block) -> None: ...

    def go_dense(self, block: Block) -> None: ...

    def go_changed(self, block: Block) -> None: ...


class Matrices(Mapping[str, Tensor]):
    """The weight (O, I) of every linear of these blocks, by its name; read block by block, each time anew."""

    def __init__(self, blocks: Iterable[Block], places: Places) -> None:
        self.blocks, self.places = list(blocks), places

    def items(self) -> Iterator[tuple[str, Tensor]]:  # type: ignore[override]  # in the order in which they are read
        for block in self.blocks:
            with self.places.present(block):
                yield from ((name, linear.weight) for name, linear in block.linears.items())

    def __getitem__(self, wanted: str) -> Tensor:
        return next(weight for name, weight in self.items() if name == wanted)

    def __iter__(self) -> Iterator[str]:
        return iter([name for block in self.blocks for name in block.linears])

    def __len__(self) -> int:
        return sum(len(block.linears) for block in self.blocks)
