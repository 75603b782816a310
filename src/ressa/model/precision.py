"""A model's tensors made wider while it is worked on, and cast back, once, to the dtypes that its folder keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.model.matrix import fused, holder


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, by each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of every parameter and buffer."""
    return {name: tensor.dtype for name, tensor in named_tensors(model)}


def wide(*tensors: Tensor) -> torch.dtype:
    """The widest dtype of `tensors`, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def matrices_of(model: nn.Module, width: int) -> list[nn.Parameter]:
    """The matrices that lose nothing where products are computed in `width` bytes and what they give is float32.

    Those of linears and of fused experts, and of plain embeddings, which are read and not multiplied, if they are
    stored in so few; each once, and none that another kind of module has too.
    """
    mine, others = dict[int, nn.Parameter](), set[int]()
    for module in model.modules():
        read = type(module) is nn.Embedding and module.weight.dtype.itemsize <= width
        narrow = fused(module) or ["weight"] * (read or isinstance(module, nn.Linear | Conv1D))
        for name, parameter in module.named_parameters(recurse=False):
            if name in narrow:
                mine[id(parameter)] = parameter
            else:
                others.add(id(parameter))
    return [parameter for key, parameter in mine.items() if key not in others]


def widened(model: nn.Module, products: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Every tensor in float32 or wider; but where autocast computes `products` in less, matrices are no wider.

    One that is not trained (`matrices_of`) is then as it is stored, or in that dtype. Where nothing is rounded by it,
    products are the same, bit for bit: autocast casts a wider matrix anyway, and rows of an embedding are made float32
    when they are read.

    Returns:
        The matrices that are now narrower than they were.
    """
    stay = set[int]()
    if products.itemsize < torch.float32.itemsize:
        stay = {id(parameter) for parameter in matrices_of(model, products.itemsize) if not parameter.requires_grad}
    rounded = []
    for parameter in model.parameters():
        if id(parameter) not in stay:
            parameter.data = parameter.data.to(wide(parameter))
        elif parameter.dtype.itemsize > products.itemsize:
            parameter.data = parameter.data.to(products)
            rounded.append(parameter)
    for module in model.modules():
        if type(module) is nn.Embedding and id(module.weight) in stay:
            module.register_forward_hook(lambda module, args, output: output.to(wide(output)))
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(wide(buffer))
    return rounded


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
