"""One dense walk that scores every block for an allocation. Shapes: O outputs, I inputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ressa.calibration.data import CalibrationData
from ressa.calibration.sweep import SweepSettings, not_entered, sweep
from ressa.parallel import team
from ressa.statistics import InputNorm


def scored(data: CalibrationData, statistic: Callable[[list[Tensor]], float]) -> dict[str, float]:
    """`statistic` of the Wanda scores, |weight| times norm of the input, of each dense block's linears, (O, I) each.

    Nothing is pruned on the way, so that every block is seen as the dense model enters it.

    Raises:
        RessaError: a block that no calibration record enters.
    """
    scores: dict[str, float] = {}
    for turn in sweep(data, InputNorm, SweepSettings(propagate="dense", whole=True)):
        if team().rank:
            continue
        inputs, linears = turn.inputs, turn.block.linears
        read = [name for name in linears if name in inputs and inputs[name].tokens]
        if not read:
            raise not_entered(turn.block)
        scores_OI = [linears[name].weight.detach().float().abs() * inputs[name].norm_I for name in read]
        scores[turn.block.name] = statistic(scores_OI)
    return team().exchange(scores)[0]
