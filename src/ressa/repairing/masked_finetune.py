"""Masked full fine-tuning: every kept weight is trained, as one vector; zeros are not parameters at all.

Of a linear, or of a module of fused experts. So the optimiser holds a state for kept weights only, and neither momentum
nor weight decay can move a zero.

Shapes: O out, I in, T tokens, N kept weights of the matrix, row by row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.model.matrix import fused
from ressa.model.precision import restore_zeros, wide
from ressa.repairing.sparse_lora.masked_product import row_chunks


class KeptProduct(torch.autograd.Function):
    """``x @ W.T + bias`` where the kept weights of W are `kept_N`; gradients for x, bias and `kept_N`."""

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, kept_N, dtype: torch.dtype) -> Tensor:
        """x (..., I) -> (..., O) in `dtype`. `weight_OI` says where the zeros are."""
        ctx.save_for_backward(x, weight_OI, kept_N)
        ctx.dtype, ctx.bias_dtype = dtype, None if bias_O is None else bias_O.dtype
        with torch.autocast(x.device.type, enabled=False):
            full_OI = with_kept(weight_OI, kept_N).to(dtype)
            return linear(x.to(dtype), full_OI, None if bias_O is None else bias_O.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight_OI, kept_N = ctx.saved_tensors
        need_x, _, need_bias, need_kept = ctx.needs_input_grad[:4]
        with torch.autocast(x.device.type, enabled=False):
            dy_TO, x_TI = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]).to(ctx.dtype)
            dx = (dy_TO @ with_kept(weight_OI, kept_N).to(ctx.dtype)).view(x.shape).to(x.dtype) if need_x else None
            dbias = dy_TO.sum(0, dtype=ctx.bias_dtype) if need_bias else None
            pieces = []
            for rows in row_chunks(weight_OI) if need_kept else ():
                pieces.append((dy_TO[:, rows].mT @ x_TI)[weight_OI[rows] != 0].to(kept_N.dtype))
        return dx, None, dbias, torch.cat(pieces) if need_kept else None, None


def with_kept(weight_OI: Tensor, kept_N: Tensor) -> Tensor:
    """A copy of the weight whose kept weights are `kept_N`, in their dtype; its zeros stay zeros."""
    return weight_OI.to(kept_N.dtype).masked_scatter(weight_OI != 0, kept_N)


class KeptLinear(nn.Module):
    """Stands in for an `nn.Linear` or `Conv1D` while its kept weights are trained; `restored` gives it back."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear | Conv1D):
            raise RessaError(f"masked fine-tuning trains linears, not a {type(base).__name__}")
        self.base: Any = base
        base.weight.requires_grad_(False)
        weight_OI = self.weight_OI
        self.kept_N = nn.Parameter(weight_OI[weight_OI != 0].detach().to(wide(weight_OI)))
        self.out_features, self.in_features = weight_OI.shape

    @property
    def weight_OI(self) -> Tensor:
        """The weight as it was pruned; only its zeros count."""
        return self.base.weight.mT if isinstance(self.base, Conv1D) else self.base.weight

    @property
    def weight(self) -> Tensor:
        """Some models look at the dtype of a linear's weight."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        device, dtype = x.device.type, self.base.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return KeptProduct.apply(x, self.weight_OI, self.base.bias, self.kept_N, dtype)

    @torch.no_grad()
    def restored(self) -> nn.Module:
        """The linear itself, with the trained weights in it and exactly the zeros it had."""
        old_OI = self.weight_OI
        new_OI = restore_zeros(with_kept(old_OI, self.kept_N), old_OI, old_OI.dtype)
        old_OI.copy_(new_OI)
        return self.base


class KeptExperts(nn.Module):
    """Stands in for a module of fused experts while their kept weights are trained; `restored` gives it back."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        weights = {name: base.get_parameter(name).requires_grad_(False) for name in fused(base)}
        self.kept = nn.ParameterDict({name: w[w != 0].to(wide(w)) for name, w in weights.items()})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the module."""
        olds = {name: self.base.get_parameter(name) for name in self.kept}
        weights = {name: with_kept(old, self.kept[name]).to(old.dtype) for name, old in olds.items()}
        return functional_call(self.base, weights, args, kwargs)

    @torch.no_grad()
    def restored(self) -> nn.Module:
        """The module itself, with the trained weights in it and exactly the zeros it had."""
        for name, kept_N in self.kept.items():
            old = self.base.get_parameter(name)
            old.copy_(restore_zeros(with_kept(old, kept_N), old, old.dtype))
        return self.base


def kept(module: nn.Module) -> KeptExperts | KeptLinear:
    """What stands in for a linear, or a module of fused experts, while its kept weights are trained."""
    return KeptExperts(module) if fused(module) else KeptLinear(module)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the submodule of that name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
