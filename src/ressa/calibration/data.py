"""What calibration works on: a model, its blocks, and batches of records, made when they are first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ressa.calibration.gradient import Guided, gradient_sizes
from ressa.calibration.places import Places
from ressa.calibration.rehearsal import rehearse
from ressa.calibration.samples import drawn
from ressa.calibration.samples import samples as draw
from ressa.calibration.tokens import TokenWeights, token_weights
from ressa.data.records import Record
from ressa.model.resident import InMemory
from ressa.model.streamed import Streamed
from ressa.model.structure import Block
from ressa.parallel import team
from ressa.settings import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class CalibrationData:
    """A model and the records to calibrate it on. Batches are made when they are first asked for."""

    net: PreTrainedModel
    processor: Any
    records: list[Record] | None
    samples: int = 128
    batch_size: int = 8
    seed: int = 0
    counts: dict[str, float] | None = None
    device: torch.device | str | None = None
    autocast: torch.dtype | None = None
    progress: Progress | None = None
    blocks: tuple[Block, ...] = ()
    streamed: Streamed | None = None  # `net`, whose blocks are in files
    every: tuple[Block, ...] = ()  # of `net`, in the order of the forward pass; needed if it is streamed
    _made: dict[str, Any] = field(default_factory=dict, repr=False)  # shared by all that are made `over` this one

    @property
    def places(self) -> Places:
        """Where the weights of the blocks are."""
        return self.streamed or InMemory()

    @property
    def road(self) -> list[Block]:
        """`blocks`, and those before the last of them that batches pass: each is read once for all batches."""
        wanted = {block.name: block for block in self.blocks}
        if self.streamed is None or not wanted:
            return list(self.blocks)
        last = max(at for at, block in enumerate(self.every) if block.name in wanted)
        road = [block for block in self.every[: last + 1] if block.name in wanted or block.name in self.streamed.places]
        return [wanted.get(block.name) or replace(block, passed=True) for block in road]

    def over(self, blocks: Iterable[Block]) -> CalibrationData:
        """The same data, for these blocks."""
        return replace(self, blocks=tuple(blocks))

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        """Of several processes' batches those of this one: every N-th."""
        if "batches" not in self._made:
            assert self.records is not None  # prune() refuses what needs data and has none
            n, config = self.samples, self.net.config
            self._made["seen"] = rehearse(self.net, self.processor, drawn(self.records, n, self.seed))
            how: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed}
            how["mine"] = slice(team().rank, None, team().size)  # so that all get short and long ones
            self._made["batches"] = draw(self.records, self.processor, config, n, **how)
        return self._made["batches"]

    @property
    def seen(self) -> str | None:
        """How the model sees the pictures of the records, once batches were made of them (`data.seeing`)."""
        return self._made.get("seen")

    @property
    def tokens(self) -> list[TokenWeights]:
        """Which tokens of each batch count, and how much."""
        if "tokens" not in self._made:
            self._made["tokens"] = [token_weights(batch, self.net.config, self.counts) for batch in self.batches]
        return self._made["tokens"]

    def guide(self) -> None:
        """Weighs tokens by gradient too (`calibration.gradient`), with the whole model in memory; before any block is
        changed: it is the dense model that says which tokens matter."""
        plain = self.tokens
        with self.places.whole():
            sizes = [gradient_sizes(self.net, self.every, batch) for batch in self.counted(self.batches, "gradients")]
        self._made["tokens"] = [
            Guided(**vars(weights), sizes=found) for weights, found in zip(plain, sizes, strict=True)
        ]

    @cached_property
    def weights(self) -> dict[str, int]:
        """How many prunable weights each block has."""
        return {block.name: sum(linear.weight.numel() for linear in block.linears.values()) for block in self.blocks}

    def counted(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items, one by one, each reported to `progress`."""
        for done, item in enumerate(items):
            if self.progress:
                self.progress(done, len(items), item.name if isinstance(item, Block) else what)
            yield item
        if self.progress:
            self.progress(len(items), len(items), "")
