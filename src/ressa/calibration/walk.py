"""Calibration batches meet at every block: each runs the model's own forward, and all wait for one another there.

A forward runs as a greenlet that pauses on entering a block. When every batch waits at some block, the earliest of
these blocks is visited: its inputs are gathered, it is pruned, and then the batches that wait there run it and go on.
Nothing is traced and nothing is known of the architecture: arguments, masks and position biases are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ressa.calibration.schedule import Schedule
from ressa.calibration.visit import Batch, Visit
from ressa.errors import unknown
from ressa.model.resident import InMemory
from ressa.model.streamed import Streamed
from ressa.model.structure import Block
from ressa.settings import Progress

PROPAGATE = ("sequential", "dense")


def walk(
    model: PreTrainedModel | Streamed,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    *,
    propagate: str = "sequential",
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
    outputs: list[Any] | None = None,
) -> Iterator[Visit]:
    """Visits each block that any batch enters, once, in the order of `blocks` (which is to be the forward's).

    What the caller does to a block during its visit is what the batches then run ("sequential"), or they go on with
    what the block made of them before ("dense"; the caller is to run every call before it changes the block). A block
    that a forward enters several times is visited once with all its entries; for that its batch runs once more for
    each such block, and one batch of each kind runs once in advance, to know. A batch that never enters a block takes
    no part in its visit.

    Args:
        model: in memory, or one whose blocks are read when they are visited.
        device: blocks move there for their visit, one at a time, and back; None leaves them where they are.
        autocast: what forwards compute products in, where that is less than the weights have; None for theirs.
        progress: called with (blocks done, blocks in all, the next one's name).
        outputs: if given, the forwards run to their end and what they return is appended, in the order of `batches`.

    Raises:
        RessaError: an unknown `propagate`; a block that is entered in a way that the run in advance did not show; one
            that is to go on as dense and was changed before every call had run.
    """
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    net, places = (model.net, model) if isinstance(model, Streamed) else (model, InMemory())
    schedule = Schedule(net, blocks, batches, None if device is None else torch.device(device), autocast, places)
    was_training = net.training
    net.eval()
    try:
        yield from schedule.visits(propagate == "dense", progress, outputs)
    finally:
        schedule.end()
        if was_training:
            net.train()


def walk_both(
    ours: tuple[PreTrainedModel | Streamed, Sequence[Block]],
    dense: tuple[PreTrainedModel | Streamed, Sequence[Block]],
    batches: Sequence[Batch],
    *,
    propagate: str = "sequential",
    progress: Progress | None = None,
    **where: Any,
) -> Iterator[tuple[Visit, Visit]]:
    """Each block in `ours`, a model that the caller changes, beside the same block in its `dense` original.

    `where` is `device` and `autocast`, as in `walk`, for both.
    """
    changed = walk(*ours, batches, propagate=propagate, progress=progress, **where)
    return zip(changed, walk(*dense, batches, propagate="dense", **where), strict=True)
