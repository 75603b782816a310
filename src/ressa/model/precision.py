"""A model's tensors made wider while it is worked on, and cast back, once, to the dtypes that its folder keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ressa.errors import RessaError
from ressa.model.matrix import fused, holder


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, by each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of every parameter and buffer."""
    return {name: tensor.dtype for name, tensor in named_tensors(model)}


def cast_back(model: nn.Module, dtypes: dict[str, torch.dtype], pruned: Iterable[str]) -> None:
    """Every tensor in its dtype again; the matrices of the `pruned` linears with exactly the zeros they have.

    Raises:
        RessaError: a pruned weight is not finite in its dtype.
    """
    for name, weight in parameters_of(model, pruned).items():
        if weight.dtype != dtypes[name]:
            weight.data = restore_zeros(weight.data, weight.data, dtypes[name])
    for name, tensor in named_tensors(model):
        tensor.data = tensor.data.to(dtypes[name])


def parameters_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that hold the matrices of these linears (or of these modules of experts), by their names."""
    found: dict[str, nn.Parameter] = {}
    for name in dict.fromkeys(holder(model, name) for name in names):
        module = model.get_submodule(name)
        found |= {f"{name}.{tensor}": module.get_parameter(tensor) for tensor in fused(module) or ["weight"]}
    return found


def restore_zeros(new_OI: Tensor, old_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast `new_OI` to `dtype` so that exactly the zeros of `old_OI` are zeros.

    A kept weight that lands on zero (it cancelled, or it is too small for the dtype) becomes the smallest normal
    number instead: the zeros are the mask, and a mask that grows by rounding would no longer be the pruned one.

    Raises:
        RessaError: a weight is not finite, or a zero is no longer zero.
    """
    cast_OI, tiny = new_OI.to(dtype), torch.finfo(dtype).tiny
    cast_OI = cast_OI.masked_fill((cast_OI == 0) & (old_OI != 0), tiny)
    if not torch.isfinite(cast_OI).all():
        said = str(dtype).removeprefix("torch.")
        raise RessaError(f"a weight is not finite in {said}: nothing is written; in repair, take a smaller lr")
    if filled := int(((cast_OI != 0) & (old_OI == 0)).sum()):
        raise RessaError(f"the update would fill {filled} zeros of the pruned weight, nothing was merged")
    return cast_OI
