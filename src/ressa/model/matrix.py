"""What is no `nn.Linear` and yet multiplies by a matrix: transformers' Conv1D, patch embeddings, fused experts.

Shapes: O outputs, I inputs (of a convolution: channels times pixels of a patch), B batch, T patches, C channels,
E experts of a mixture, whose matrices are one parameter: (E, O, I), or (E, I, O) where inputs stand on the left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.packed.linear import PackedLinear

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class AsLinear:
    """A module seen as a linear: `weight` is (O, I), a view, so that writing into it changes the module's own.

    Of fused experts it is the matrix of one: that number `expert` of the parameter called `tensor`.
    """

    module: nn.Module
    tensor: str = "weight"
    expert: int | None = None

    @property
    def weight(self) -> Tensor:
        if isinstance(self.module, PackedLinear):
            return self.module.weight  # unpacked: here writing changes nothing
        if self.expert is None:
            return matrix(self.module, self.parameter)
        return self.parameter[self.expert].mT if transposed(self.module) else self.parameter[self.expert]

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as the module keeps it; of an expert that of all experts."""
        return self.module.get_parameter(self.tensor)

    def register_forward_pre_hook(self, hook: Callable[..., None], *, with_kwargs: bool = False) -> RemovableHandle:
        """As nn.Module does; the hook hears tokens (..., I)."""

        def hear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            tokens = (patches(module, x) if isinstance(module, Convolution) else x,)
            hook(module, tokens, {}) if with_kwargs else hook(module, tokens)

        return self.module.register_forward_pre_hook(hear, with_kwargs=True)


def parameter(linear: nn.Linear | AsLinear) -> nn.Parameter:
    """The weight as its module keeps it: what has a gradient."""
    return linear.parameter if isinstance(linear, AsLinear) else linear.get_parameter("weight")


def seen_as_linear(module: nn.Module) -> nn.Linear | AsLinear | None:
    """A linear itself, a Conv1D or a packed one as one, None for any other module; patch embeddings are asked for."""
    if isinstance(module, nn.Linear):
        return module
    return AsLinear(module) if isinstance(module, Conv1D | PackedLinear) else None


def is_norm(module: nn.Module) -> bool:
    """Whether it is a normalisation, by the name of its class (LayerNorm, LlamaRMSNorm, T5LayerNorm)."""
    return "norm" in type(module).__name__.lower()


def is_expert(linear: nn.Linear | AsLinear) -> bool:
    """Whether it is one of many that each hear only the tokens that are sent to them."""
    return isinstance(linear, AsLinear) and linear.expert is not None


def fused(module: nn.Module) -> list[str]:
    """The parameters of a module that each hold a matrix for every expert of a mixture; of any other module none."""
    count = getattr(module, "num_experts", None)
    return [name for name, p in module.named_parameters(recurse=False) if p.ndim == 3 and len(p) == count]


def fused_experts(module: nn.Module) -> dict[str, AsLinear]:
    """The matrices of a module that holds all experts of a mixture: {"gate_up_proj.0": ...}; of any other none."""
    return {
        f"{name}.{expert}": AsLinear(module, name, expert)
        for name in fused(module)
        for expert in range(len(module.get_parameter(name)))
    }


def transposed(experts: nn.Module) -> bool:
    """Whether the experts' matrices are kept as (E, I, O): the module says so, or its shapes tell."""
    said = getattr(experts, "is_transposed", None)
    if said is not None:
        return said
    shapes = [parameter.shape for parameter in experts.parameters(recurse=False) if parameter.ndim == 3]
    if len(shapes) != 2:  # JetMoE's are given tokens that are sorted already: whose they are cannot be told
        raise RessaError(f"{type(experts).__name__} keeps experts in a way that ressa does not know and cannot prune")
    first, last = shapes
    return first[1] == last[2]  # into the experts as wide as out of them; between, the gate makes it twice as wide


def holder(model: nn.Module, name: str) -> str:
    """The name of the module that holds the matrix of the linear that `structure` calls `name`."""
    module, tensor, number = ([""] * 3 + name.rsplit(".", 2))[-3:]
    return module if number.isdigit() and tensor in fused(model.get_submodule(module)) else name


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The weight (O, I), a view, of the linear that `structure` calls `name`."""
    module = model.get_submodule(holder(model, name))
    if fused(module):
        _, tensor, number = name.rsplit(".", 2)
        return AsLinear(module, tensor, int(number)).weight
    return matrix(module, module.get_parameter("weight"))


def matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """The view (O, I) of a weight as `module` keeps it: Conv1D as (I, O), convolutions as (O, C, patch)."""
    if isinstance(module, Conv1D):
        return weight.mT
    return weight.flatten(1) if isinstance(module, Convolution) else weight


def is_patch_embedding(module: nn.Module) -> bool:
    """Whether it is a convolution whose patches do not overlap, which makes it a linear on each patch."""
    return (
        isinstance(module, Convolution)
        and module.kernel_size == module.stride
        and module.groups == 1
        and set(module.dilation) == {1}
        and module.padding in ("valid", (0,) * len(module.kernel_size))
    )


def patches(convolution: Convolution, x: Tensor) -> Tensor:
    """What a patch embedding reads of x (B, C, *size): (B, T, I), in the order of its outputs and of its weight."""
    dims = range(2, x.ndim)
    for dim, side in zip(dims, convolution.kernel_size, strict=True):
        x = x.unfold(dim, side, side)  # drops what is left over, as the convolution does
    x = x.movedim(1, x.ndim - 1 - len(dims))  # behind the places, before the pixels
    return x.flatten(1, len(dims)).flatten(2)
