"""A linear under SparseLoRA.

Shapes: O out, I in, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.model.precision import restore_zeros
from ressa.repairing.sparse_lora.layer import SparseLoraConfig, SparseLoraLayer, new_a
from ressa.repairing.sparse_lora.masked_product import MaskedLinear, StraightThrough, effective_weight, wide


class SparseLoraLinear(nn.Module, SparseLoraLayer):
    """An `nn.Linear` or `Conv1D` whose non-zero weights have a low-rank update.

    `twins` are the layers (this one too) that share its weight; they share A and B, and are merged once.
    """

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SparseLoraConfig, rank: int, alpha: float
    ) -> None:
        super().__init__()
        self._begin(base_layer, adapter_name)
        self.transposed = isinstance(self.base_layer, Conv1D)
        self.out_features, self.in_features = self._weight_OI(self.base_layer.weight).shape
        self.sparselora_A, self.sparselora_B = nn.ParameterDict(), nn.ParameterDict()
        self.twins: list[SparseLoraLinear] = [self]
        self.tied_to: str | None = None
        self._merged_by_twin = False
        self.update_layer(adapter_name, config, rank, alpha)

    def update_layer(self, adapter_name: str, config: SparseLoraConfig, rank: int, alpha: float) -> None:
        """Add one adapter: A (rank, I), B (O, rank)."""
        self.sparselora_A[adapter_name] = nn.Parameter(new_a(rank, self.in_features))
        self.sparselora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, rank))
        self._register_adapter(adapter_name, config, rank, alpha)

    def share(self, twin: SparseLoraLinear) -> None:
        """Take the adapters of `twin`, whose weight this layer's is: one weight has one update."""
        for name in self.sparselora_A:
            self.sparselora_A[name], self.sparselora_B[name] = twin.sparselora_A[name], twin.sparselora_B[name]
        if self not in twin.twins:
            twin.twins.append(self)
        self.twins = twin.twins

    def _weight_OI(self, weight: Any) -> Any:
        return weight.mT if self.transposed else weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., I) -> (..., O)."""
        name = self._at_work()
        if name is None:
            return self.base_layer(x, *args, **kwargs)
        device, dtype = x.device.type, self.base_layer.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif x.dtype != dtype:
            raise RessaError(f"SparseLoRA: input is {x.dtype} but the weight is {dtype}: cast one, or use autocast")
        return self._apply_masked(x, name, dtype)

    @torch.compiler.disable  # a compiler would be free to keep W_eff from forward to backward
    def _apply_masked(self, x: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        function = StraightThrough if self.straight_through[name] else MaskedLinear
        a_RI, b_OR = self._dropped(self.sparselora_A[name], name), self.sparselora_B[name]
        weight_OI = self._weight_OI(self.base_layer.weight)
        return function.apply(x, weight_OI, self.base_layer.bias, a_RI, b_OR, self.scaling[name], dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the update to the weight, in float32 and cast once. Always checked, so `safe_merge` changes nothing.

        Raises:
            RessaError: an adapter is merged already, the zeros of the weight would change, or the weight is also that
                of a module without an adapter, which would change with it.
        """
        if self._merged_by_twin:
            self._merged_by_twin = False
            return
        name = self._to_merge(adapter_names)
        if name is None:
            return
        if self.tied_to:
            raise RessaError(f"SparseLoRA: a weight is tied to {self.tied_to}, which merging would change: untie them")
        old = self.get_base_weight()
        old_OI, a_RI, b_OR = self._weight_OI(old), self.sparselora_A[name], self.sparselora_B[name]
        new_OI = effective_weight(old_OI, a_RI, b_OR, self.scaling[name], wide(old))
        self.set_base_weight(self._weight_OI(restore_zeros(new_OI, old_OI, old.dtype)).contiguous())
        for twin in self.twins:
            twin.merged_adapters, twin._merged_by_twin = [name], twin is not self
