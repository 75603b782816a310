"""Fused experts of a mixture under SparseLoRA: the same update, for parameters that hold many matrices.

The module runs its own forward with other tensors in the place of its parameters, whatever way it multiplies by them.
So, unlike with linears, the sums are there from forward to backward: one more copy of the experts that are adapted, or
that of one layer with gradient checkpointing.

Shapes: E experts, O out, I in, R rank; the parameter is (E, O, I), or (E, I, O) where inputs stand on the left, so that
an update of it, left @ right, is B @ A, or A.T @ B.T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from ressa.model.matrix import fused, transposed
from ressa.model.precision import restore_zeros, wide
from ressa.repairing.sparse_lora.layer import SparseLoraConfig, SparseLoraLayer, new_a
from ressa.repairing.sparse_lora.masked_product import where_kept


class MaskedSum(torch.autograd.Function):
    """``W + scale * (left @ right) * [W != 0]``, expert by expert; `exact` or straight-through gradients for both."""

    @staticmethod
    def forward(ctx, weight, left, right, scale: float, exact: bool) -> Tensor:
        ctx.save_for_backward(weight, left, right)
        ctx.scale, ctx.exact = scale, exact
        return masked_sum(weight, left, right, scale).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weight, left, right = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            grad = gradient.to(left.dtype, copy=ctx.exact)
            if ctx.exact:
                where_kept(grad, weight.to(left.dtype))
            dleft, dright = torch.bmm(grad, right.mT).mul_(ctx.scale), torch.bmm(left.mT, grad).mul_(ctx.scale)
        return gradient if ctx.needs_input_grad[0] else None, dleft, dright, None, None


def masked_sum(weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """The sum in float32 or wider; zeros of the weight stay exactly zero."""
    dtype = wide(weight, left)
    with torch.autocast(weight.device.type, enabled=False):
        weight = weight.to(dtype)
        return where_kept(torch.baddbmm(weight, left.to(dtype), right.to(dtype), alpha=scale), weight)


class SparseLoraExperts(nn.Module, SparseLoraLayer):
    """A module of fused experts whose non-zero weights have low-rank updates, each expert its own."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SparseLoraConfig, rank: int, alpha: float
    ) -> None:
        super().__init__()
        self._begin(base_layer, adapter_name)
        self.transposed = transposed(base_layer)
        self.sparselora_A, self.sparselora_B = nn.ModuleDict(), nn.ModuleDict()
        self.update_layer(adapter_name, config, rank, alpha)

    def update_layer(self, adapter_name: str, config: SparseLoraConfig, rank: int, alpha: float) -> None:
        """Add one adapter: A (E, rank, I) and B (E, O, rank) for each fused parameter."""
        a, b = nn.ParameterDict(), nn.ParameterDict()
        for name in fused(self.base_layer):
            weight_EOI = self._turned(self.base_layer.get_parameter(name))
            experts, outputs, inputs = weight_EOI.shape
            a[name] = nn.Parameter(new_a(experts, rank, inputs))
            b[name] = nn.Parameter(torch.zeros(experts, outputs, rank))
        self.sparselora_A[adapter_name], self.sparselora_B[adapter_name] = a, b
        self._register_adapter(adapter_name, config, rank, alpha)

    def _turned(self, weight: Tensor) -> Tensor:
        return weight.mT if self.transposed else weight

    def _update(self, name: str, tensor: str) -> tuple[Tensor, Tensor]:
        """The (left, right) whose product is the update of the parameter `tensor`, as the module keeps it."""
        a_ERI, b_EOR = self._dropped(self.sparselora_A[name][tensor], name), self.sparselora_B[name][tensor]
        return (a_ERI.mT, b_EOR.mT) if self.transposed else (b_EOR, a_ERI)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the module."""
        name = self._at_work()
        if name is None:
            return self.base_layer(*args, **kwargs)
        return functional_call(self.base_layer, self._weights(name), args, kwargs)

    @torch.compiler.disable
    def _weights(self, name: str) -> dict[str, Tensor]:
        scale, exact = self.scaling[name], not self.straight_through[name]
        return {
            tensor: MaskedSum.apply(self.base_layer.get_parameter(tensor), *self._update(name, tensor), scale, exact)
            for tensor in self.sparselora_A[name]
        }

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates to the weights, in float32 and cast once; always checked.

        Raises:
            RessaError: an adapter is merged already, or the zeros of a weight would change.
        """
        name = self._to_merge(adapter_names)
        if name is None:
            return
        olds = {tensor: self.base_layer.get_parameter(tensor) for tensor in self.sparselora_A[name]}
        news = {
            tensor: restore_zeros(masked_sum(old, *self._update(name, tensor), self.scaling[name]), old, old.dtype)
            for tensor, old in olds.items()
        }
        for tensor, old in olds.items():
            old.data = news[tensor]
        self.merged_adapters = [name]
