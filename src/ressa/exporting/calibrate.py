"""The linears of a model rounded block after block, on inputs that come from blocks rounded before.

Blocks are read from their files when they are run, as `prune` reads them; what was made of one is laid over it then.

Shapes: O outputs, I inputs, N kept weights, S scales.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ressa.calibration.data import CalibrationData
from ressa.calibration.sweep import sweep
from ressa.data.records import Record
from ressa.errors import RessaError, RessaWarning
from ressa.exporting.rounding import compensated
from ressa.exporting.settings import Export
from ressa.files.folders import nearest as nearest_folder
from ressa.machine import check_machine
from ressa.model.load import machine_for
from ressa.model.spill import spill
from ressa.model.streamed import Streamed, load_streamed
from ressa.model.structure import Block, structure
from ressa.packed.format import nearest
from ressa.settings import Progress, Runtime
from ressa.statistics import Gram


@dataclass(frozen=True)
class Grid:
    """Which integers, and what shares a scale."""

    kind: str
    lay: Callable[[Tensor], tuple[Tensor, Tensor]]  # of a weight: which are kept (O, I), how many for each scale (S,)
    scales: torch.dtype | None = None  # their dtype; None: as the packed format has it


Rounded = tuple[Tensor, Tensor]  # int8 integers (N,) of the kept weights in row-major order, scales (S,)


@torch.no_grad()
def calibrated(
    model: str | Path,
    out: Path,
    records: list[Record],
    linears: Collection[str],
    grid: Grid,
    settings: Export,
    runtime: Runtime,
    progress: Progress | None = None,
) -> dict[str, Rounded]:
    """{linear: its kept weights in integers and their scales}, in one pass through all blocks.

    Args:
        out: the folder that will be written; the integers wait in files beside it.

    Raises:
        RessaError: a block that no record enters, weights or inputs that are no numbers.
    """
    check_machine(**asdict(runtime))
    net, processor, streamed = load_streamed(model)
    chosen = machine_for(net, runtime.device, runtime.dtype)
    if chosen.working != chosen.stored:
        net.float()
    wanted = set(linears)
    every = tuple(structure(net).blocks())
    blocks = [block for block in every if block.linears.keys() & wanted]
    where: dict[str, Any] = {"device": chosen.block_device, "autocast": chosen.autocast, "progress": progress}
    where |= {"streamed": streamed, "every": every}
    data = CalibrationData(net, processor, records, settings.samples, settings.batch_size, settings.seed, **where)
    made: dict[str, Rounded] = {}
    streamed.when_read = _Overlay(streamed, every, grid, made)
    for turn in sweep(data.over(blocks), Gram, changed=wanted):
        for name in turn.linears:
            made[name] = _in_place(name, turn.block.linears[name].weight, grid, turn.inputs.get(name))
            _spill(made[name], out)
    return made


def _in_place(name: str, weight_OI: Tensor, grid: Grid, inputs: Gram | None) -> Rounded:
    """What is made of one linear, whose weight becomes what that stands for."""
    keep_OI, runs_S = grid.lay(weight_OI)
    integers_N, scale_S = _rounded(name, weight_OI, keep_OI, runs_S, grid, inputs)
    _put(weight_OI, keep_OI, runs_S, (integers_N, scale_S))
    return integers_N.cpu(), scale_S.cpu()


def _put(weight_OI: Tensor, keep_OI: Tensor, runs_S: Tensor, rounded: Rounded) -> None:
    """Writes into the weight what its integers stand for."""
    integers_N, scale_S = (tensor.to(weight_OI.device) for tensor in rounded)
    values_N = integers_N * scale_S.float().repeat_interleave(runs_S)
    weight_OI.masked_scatter_(keep_OI, values_N.to(weight_OI.dtype))


class _Overlay:
    """A block that is read anew, for batches that enter it again, gets its rounded weights."""

    def __init__(self, streamed: Streamed, blocks: Iterable[Block], grid: Grid, made: Mapping[str, Rounded]) -> None:
        self.read = {place.name for places in streamed.places.values() for place in places}
        self.linears = {block.name: block.linears for block in blocks}
        self.grid, self.made = grid, made

    @torch.no_grad()
    def __call__(self, block: str) -> None:
        for name, linear in self.linears[block].items():
            if name in self.made and f"{name}.weight" in self.read:  # others stay in memory, and are rounded there
                _put(linear.weight, *self.grid.lay(linear.weight), self.made[name])


def _spill(tree: Any, out: Path) -> None:
    """Integers wait on the disk, where their folder will be: those of a large model take half of its memory."""
    folder = nearest_folder(out)
    try:
        spill(tree, folder)
    except OSError as error:
        raise RessaError(f"{folder}: rounded weights cannot be kept there ({error.strerror})") from None


def _rounded(name: str, weight_OI: Tensor, keep_OI: Tensor, runs_S: Tensor, grid: Grid, inputs: Gram | None) -> Rounded:
    """One linear: what is lost is made up for, or without inputs (with a RessaWarning) rounded to nearest."""
    try:
        if inputs is not None and inputs.tokens:
            return compensated(weight_OI, inputs, keep_OI, runs_S, grid.kind, grid.scales)
        warnings.warn(f"no calibration token reaches {name}: rounded to nearest", RessaWarning, stacklevel=2)
        return nearest(weight_OI[keep_OI], runs_S, grid.kind, grid.scales)
    except RessaError as error:
        raise RessaError(f"{name}: {error}") from None
