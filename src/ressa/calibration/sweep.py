"""The sweep over blocks that pruning, measuring and quantisation share: what changes a block is the caller's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ressa.calibration.asymmetric import shifts
from ressa.calibration.data import CalibrationData
from ressa.calibration.gather import gather, reading_order
from ressa.calibration.resume import FinishedBlocks
from ressa.calibration.sums import Owners
from ressa.calibration.tensors import give_back
from ressa.calibration.visit import Visit
from ressa.calibration.walk import walk, walk_both
from ressa.errors import RessaError
from ressa.model.streamed import Streamed
from ressa.model.structure import Block
from ressa.parallel import team


@dataclass(frozen=True)
class SweepSettings:
    """How blocks get their inputs; the settings of `prune` with the same names."""

    propagate: str = "sequential"
    order: str = "block"
    asymmetric: float = 0.0
    whole: bool = False  # of several processes the first gets all linears of a block


DENSE = SweepSettings(propagate="dense")


@dataclass
class Turn:
    """The linears of one block that are changed together, with the statistics of their inputs.

    `inputs` lacks a linear that no batch reached. Without data it has None for each, and `visit` is None. Both are
    empty once the turn is over: Grams and the calls of all batches are large.

    Of several processes each has the linears that it is to change; then all call `share`.
    """

    block: Block
    linears: list[str]
    inputs: dict[str, Any]
    owners: Owners
    visit: Visit | None = None

    def share(self) -> None:
        """Every process gets the weights that the others have changed. Raises RessaError if one of them has failed."""
        self.owners.share()


def sweep(
    data: CalibrationData,
    needs: type[Any] | None,
    settings: SweepSettings = SweepSettings(),
    changed: Collection[str] | None = None,
    finished: FinishedBlocks | None = None,
) -> Iterator[Turn]:
    """The turns in which `data.blocks` are changed, in the order of the forward pass.

    Args:
        needs: the statistic to gather of each linear's inputs; None: no data is looked at.
        changed: the linears that will be changed (None: all); with `asymmetric` their weights are moved before a turn.
        finished: blocks that an earlier run has finished are put back and have no turn; others are kept there.

    Raises:
        RessaError: a block that no calibration record enters.
    """
    if needs is None:
        yield from _without_data(data, changed, finished)
        return
    entered = set()
    for visit, original in _visits(data, settings):
        entered.add(visit.block.name)
        if finished and finished.has(visit.block):
            for call in visit.calls if visit.onward else ():
                visit.run(call)  # the batch goes on with what the dense block makes of it
            finished.put_back(visit.block)
            continue
        for names in () if visit.block.passed else _groups(visit, settings.order, changed):
            owners = Owners(visit.block, needs, whole=settings.whole)
            inputs = gather(visit, needs, data.tokens, names, owners)
            moved = shifts(visit, original, data.tokens, inputs, owners) if original else {}
            _move_weights(visit.block, moved, settings.asymmetric)
            give_back()  # what the batches took, before a solver takes as much
            turn = Turn(visit.block, owners.mine(names), inputs, owners, visit)
            yield turn
            turn.inputs.clear()
            turn.visit = None
        if finished:
            finished.keep(visit.block)
    for block in data.blocks:
        if block.name not in entered and not block.passed:
            if finished:
                finished.forget()  # of no use to a run that could go through
            raise not_entered(block)


def _without_data(
    data: CalibrationData, changed: Collection[str] | None, finished: FinishedBlocks | None
) -> Iterator[Turn]:
    for block in data.counted(data.blocks, ""):
        if finished and finished.has(block):
            continue
        names = [name for name in block.linears if changed is None or name in changed]
        with data.places.present(block):
            owners = Owners(block, None)
            mine = owners.mine(names)
            yield Turn(block, mine, dict.fromkeys(mine), owners)
            if finished:
                finished.keep(block)


def not_entered(block: Block) -> RessaError:
    return RessaError(f"no calibration record enters {block.name}: add records that do, or leave its part out")


def _visits(data: CalibrationData, settings: SweepSettings) -> Iterator[tuple[Visit, Visit | None]]:
    """Each block with all its calls, and for the asymmetric target the same block of a copy that stays dense."""
    ours, batches = (data.streamed or data.net, data.road), data.batches
    where: dict[str, Any] = {"device": data.device, "autocast": data.autocast, "progress": data.progress}
    where["propagate"] = settings.propagate
    if settings.asymmetric:
        yield from walk_both(ours, _copied(data), batches, **where)
    else:
        yield from ((visit, None) for visit in walk(*ours, batches, **where))


def _copied(data: CalibrationData) -> tuple[PreTrainedModel | Streamed, Sequence[Block]]:
    """The same model once more; of one whose blocks are in files only what is outside of them takes memory twice."""
    return data.streamed.copy(data.road) if data.streamed else deepcopy((data.net, data.road))


def _groups(visit: Visit, order: str, changed: Collection[str] | None) -> Iterator[list[str]]:
    """The linears that are changed from one gathering of inputs, group by group; unread ones come last."""
    groups = _reading_order(visit) if order == "layer" else []
    read = {name for names in groups for name in names}
    for names in (*groups, [name for name in visit.block.linears if name not in read]):
        if chosen := [name for name in names if changed is None or name in changed]:
            yield chosen


def _reading_order(visit: Visit) -> list[list[str]]:
    """That of the first batch of all processes."""
    first = visit.calls[0].batch if visit.calls else math.inf
    return min(enumerate(team().exchange((first, reading_order(visit)))), key=lambda said: (said[1][0], said[0]))[1][1]


@torch.no_grad()
def _move_weights(block: Block, shifts: Mapping[str, Tensor], share: float) -> None:
    """Moves weights a `share` of the way to those that make up for what the changed blocks before them lost."""
    for name, shift_II in shifts.items():
        weight_OI = block.linears[name].weight
        weight_OI.add_((share * weight_OI.float() @ shift_II).to(weight_OI.dtype))
