"""One dense walk that scores every block for an allocation. Shapes: O outputs, I inputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ressa.calibration.data import CalibrationData
from ressa.calibration.gather import gather
from ressa.errors import RessaError
from ressa.statistics import InputNorm


def scored(data: CalibrationData, statistic: Callable[[list[Tensor]], float]) -> dict[str, float]:
    """`statistic` of the Wanda scores, |weight| times norm of the input, of each dense block's linears, (O, I) each.

    Nothing is pruned on the way, so that every block is seen as the dense model enters it.

    Raises:
        RessaError: a block that no calibration record enters.
    """
    scores: dict[str, float] = {}
    for visit in data.visits():
        inputs, linears = gather(visit, InputNorm, data.tokens), visit.block.linears
        heard = [name for name in linears if name in inputs and inputs[name].tokens]
        scores_OI = [linears[name].weight.detach().float().abs() * inputs[name].norm_I for name in heard]
        if scores_OI:
            scores[visit.block.name] = statistic(scores_OI)
    for name in (block.name for block in data.blocks if block.name not in scores):
        raise RessaError(f"no calibration record enters {name}: add records that do, or leave its part out")
    return scores
