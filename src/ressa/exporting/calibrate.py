"""The linears of a model rounded block after block, on inputs that come from blocks rounded before.

Shapes: O outputs, I inputs, N kept weights, S scales.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
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
from ressa.machine import check_machine
from ressa.model.load import load, machine_for
from ressa.model.structure import structure
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
    records: list[Record],
    linears: Collection[str],
    grid: Grid,
    settings: Export,
    runtime: Runtime,
    progress: Progress | None = None,
) -> dict[str, Rounded]:
    """{linear: its kept weights in integers and their scales}, in one pass through all blocks.

    Raises:
        RessaError: a block that no record enters, weights or inputs that are no numbers.
    """
    check_machine(**asdict(runtime))
    net, processor = load(model)
    chosen = machine_for(net, runtime.device, runtime.dtype)
    if chosen.working != chosen.stored:
        net.float()
    wanted = set(linears)
    blocks = [block for block in structure(net).blocks() if block.linears.keys() & wanted]
    where: dict[str, Any] = {"device": chosen.block_device, "autocast": chosen.autocast, "progress": progress}
    data = CalibrationData(net, processor, records, settings.samples, settings.batch_size, settings.seed, **where)
    made: dict[str, Rounded] = {}
    for turn in sweep(data.over(blocks), Gram, changed=wanted):
        for name in turn.linears:
            weight_OI = turn.block.linears[name].weight
            keep_OI, runs_S = grid.lay(weight_OI)
            integers_N, scale_S = _rounded(name, weight_OI, keep_OI, runs_S, grid, turn.inputs.get(name))
            values_N = integers_N * scale_S.float().repeat_interleave(runs_S)
            weight_OI.masked_scatter_(keep_OI, values_N.to(weight_OI.dtype))
            made[name] = integers_N.cpu(), scale_S.cpu()
    return made


def _rounded(name: str, weight_OI: Tensor, keep_OI: Tensor, runs_S: Tensor, grid: Grid, inputs: Gram | None) -> Rounded:
    """One linear: what is lost is made up for, or without inputs (with a RessaWarning) rounded to nearest."""
    try:
        if inputs is not None and inputs.tokens:
            return compensated(weight_OI, inputs, keep_OI, runs_S, grid.kind, grid.scales)
        warnings.warn(f"no calibration token reaches {name}: rounded to nearest", RessaWarning, stacklevel=2)
        return nearest(weight_OI[keep_OI], runs_S, grid.kind, grid.scales)
    except RessaError as error:
        raise RessaError(f"{name}: {error}") from None
