"""Allocations, by name: how much sparsity each block gets. A new one is one file and one line here.

What is measured of each block (`measure`) and what follows from it (`share`, pure arithmetic) are apart: `share` takes
(scores, weights of each block, zeros in all) and gives {block: sparsity}, with exactly these zeros.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ressa.allocation import arithmetic, dlp, ecoflap, magnitude, owl, uniform
from ressa.allocation.measure import scored
from ressa.calibration.data import CalibrationData
from ressa.errors import unknown


@dataclass(frozen=True)
class Allocation:
    """`measure` needs data, unless it is None; `share` may have a setting `spread`."""

    share: Callable[..., dict[str, float]]
    measure: Callable[[CalibrationData], dict[str, float]] | None = None
    unit: Literal["block", "linear"] = "block"  # a linear's own score is its weight

    @property
    def spread(self) -> float | None:
        """The default of its setting `spread`; None if it has none."""
        setting = inspect.signature(self.share).parameters.get("spread")
        return setting.default if setting else None


ALLOCATIONS: dict[str, Allocation] = {
    "uniform": Allocation(uniform.uniform),
    "magnitude": Allocation(magnitude.magnitude, unit="linear"),
    "arithmetic": Allocation(arithmetic.arithmetic),
    "owl": Allocation(owl.owl, partial(scored, statistic=owl.outliers)),
    "dlp": Allocation(dlp.dlp, partial(scored, statistic=dlp.median)),
    "ecoflap": Allocation(ecoflap.ecoflap, ecoflap.saliency),
    "ecoflap-zeroth": Allocation(ecoflap.ecoflap, ecoflap.zeroth_order),
}


def get(name: str) -> Allocation:
    """The allocation called `name`; RessaError with the nearest name if there is none.

    >>> get("owl").spread
    0.08
    """
    if name not in ALLOCATIONS:
        raise unknown("allocation", name, ALLOCATIONS)
    return ALLOCATIONS[name]
