"""By modality: how many zeros vision, connector and language hold, at an equal number in all."""

from __future__ import annotations

from collections.abc import Mapping

from ressa.allocation.budget import whole
from ressa.errors import RessaError


def by_modality(total: float, fixed: Mapping[str, float], weights: Mapping[str, int]) -> dict[str, int]:
    """The zeros of each part, `total` of all `weights` together; `fixed` is the sparsity of some parts.

    The others share one sparsity, (S * P - sum of s_f * P_f) / P_free. Vision dense: language gets S * (P_V + P_L) /
    P_L. RESSA compares ratios whose sum is constant, and thereby models of unlike size.

    Raises:
        RessaError: the other parts would have to hold fewer zeros than none, or more than they have weights.

    >>> by_modality(0.5, {"vision": 0.0}, {"vision": 200, "language": 800})
    {'vision': 0, 'language': 500}
    """
    everything = sum(weights.values())
    zeros = {part: round(fixed[part] * n) for part, n in weights.items() if part in fixed}
    free = {part: n for part, n in weights.items() if part not in fixed}
    room, left = sum(free.values()), round(total * everything) - sum(zeros.values())
    if not 0 <= left < room:
        said = " and ".join(f"{part} at {100 * fixed[part]:g}%" for part in zeros) or "no part told apart"
        lowest, highest = sum(zeros.values()) / everything, (sum(zeros.values()) + room) / everything
        needs = f"needs {left / room:.1%} of {' and '.join(free)}" if room else "leaves no part to make up for it"
        raise RessaError(
            f"total {100 * total:g}% with {said} {needs}: say at least {lowest:.1%} and less than {highest:.1%}"
        )
    zeros |= whole({part: left * n / room for part, n in free.items()}, left, free)
    return {part: zeros[part] for part in weights}
