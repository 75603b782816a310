"""Which linears of a folder are packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.exporting.files import Weights
from ressa.model.folder import PRUNED_FROM, module_names
from ressa.model.matrix import AsLinear
from ressa.model.structure import structure
from ressa.packed.format import LARGEST


def chosen(
    model: PreTrainedModel, source: Weights, matrices: Mapping[str, Any], values: str
) -> tuple[dict[str, str], list[str]]:
    """({stem of the stored names: linear} to be packed, pruned linears that cannot be or would not become smaller).

    The pruned ones: what ressa.json lists (`matrices`), else every linear with enough zeros. In integers a model
    without any is packed whole.

    Raises:
        RessaError: nothing to pack.
    """
    linears = {name: linear for block in structure(model).blocks() for name, linear in block.linears.items()}
    fit = {name for name, linear in linears.items() if _fits(linear)}
    names = module_names(model, [key for key in source.where if key.endswith(".weight")])
    stems = {name: key.removesuffix(".weight") for key, name in names.items() if name in fit}
    zeros, bits = dict[str, float](), dict[str, int]()
    for name, stem in stems.items():
        weight = source.tensor(f"{stem}.weight")
        zeros[name], bits[name] = float((weight == 0).double().mean()), 8 * weight.element_size()
    pruned = list(matrices) or [name for name in stems if zeros[name] >= PRUNED_FROM]
    if not pruned and values in LARGEST:
        pruned = list(stems)
    # of float values the bit of the mask must be worth it: else the linear would become larger
    packed = [n for n in pruned if n in stems and (values in LARGEST or zeros[n] * bits[n] > 1)]
    if not packed:
        raise RessaError(
            f"{source.folder}: no pruned linear to pack: prune it first, or store its values in 8 or 4 bits "
            "(--values int8)"
        )
    return {stems[name]: name for name in packed}, [name for name in pruned if name not in packed]


def _fits(linear: Any) -> bool:
    """A linear of its own, or a Conv1D: no experts that share a parameter, and no class that computes otherwise."""
    module = linear.module if isinstance(linear, AsLinear) else linear
    return type(module) in (nn.Linear, Conv1D)
