"""SparseLoRA: a low-rank update that lives only where a pruned weight is not zero, as a peft method.

    W_eff = W + (alpha / rank) * (B @ A) * [W != 0]

The zeros of the weight are the mask: there is no mask buffer, and merging cannot fill a zero. `masked` has the
arithmetic.

Shapes: O out, I in, R rank.

    >>> config = SparseLoraConfig(rank=8, alpha=16, target_modules=["q_proj", "v_proj"])    # doctest: +SKIP
    >>> model = peft.get_peft_model(pruned, config)                                         # doctest: +SKIP
    >>> repaired = model.merge_and_unload()                                                 # doctest: +SKIP
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.model.matrix import fused
from ressa.model.precision import keep_kept
from ressa.repairing.experts import SparseLoraExperts
from ressa.repairing.layer import NAME, SparseLoraConfig, SparseLoraLayer, new_a
from ressa.repairing.masked import MaskedLinear, StraightThrough, effective_weight, wide


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
        self._told(adapter_name, config, rank, alpha)

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
        self.set_base_weight(self._weight_OI(keep_kept(new_OI, old_OI, old.dtype)).contiguous())
        for twin in self.twins:
            twin.merged_adapters, twin._merged_by_twin = [name], twin is not self


class SparseLoraModel(BaseTuner):
    """peft's model side: puts a `SparseLoraLinear` where the config says, and takes it away again."""

    prefix = f"{NAME}_"
    tuner_layer_cls = SparseLoraLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (peft's own declaration; no defaults)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = cast(SparseLoraConfig, peft_config)
        rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), current_key), config.rank)
        alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), current_key), config.alpha)
        if isinstance(target, SparseLoraLinear | SparseLoraExperts):
            target.update_layer(adapter_name, config, rank, alpha)
            if isinstance(target, SparseLoraLinear) and target is not target.twins[0]:
                target.share(target.twins[0])
            return
        if fused(target):
            self._put(SparseLoraExperts(target, adapter_name, config, rank, alpha), adapter_name, parent, target_name)
            return
        if not isinstance(target, nn.Linear | Conv1D) or not target.weight.is_floating_point():
            kind = type(target).__name__
            raise RessaError(
                f"SparseLoRA: '{current_key}' is a {kind}, not a plain linear: name only linears, or modules of fused "
                "experts, in target_modules"
            )
        layer = SparseLoraLinear(target, adapter_name, config, rank, alpha)
        self._tie(layer)
        self._put(layer, adapter_name, parent, target_name)

    def _put(self, layer: Any, adapter_name: str, parent: nn.Module, target_name: str) -> None:
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is made the active one
        self._replace_module(parent, target_name, layer, layer.base_layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, SparseLoraExperts):  # what it gives back has no `weight` for peft to look after
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _tie(self, layer: SparseLoraLinear) -> None:
        """Find who else has the layer's weight: an adapted linear shares its adapter, another module is remembered."""
        weight, others = layer.base_layer.weight, []
        for name, module in self.model.named_modules():
            if module is layer.base_layer or getattr(module, "weight", None) is not weight:
                continue
            if isinstance(module, SparseLoraLinear):
                if module.transposed != layer.transposed:
                    raise RessaError(f"SparseLoRA: {name} has the same weight transposed: leave one of them out")
                layer.share(module.twins[0])
            elif not name.endswith(".base_layer"):
                others.append(name)
        for twin in layer.twins:
            twin.tied_to = others[0] if others else None

    def _check_tied_modules(self, model: nn.Module, peft_config: Any) -> None:
        with suppress(NotImplementedError):  # PP-FormulaNet cannot name its embeddings
            super()._check_tied_modules(model, peft_config)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The model with the update in its weights and nothing of SparseLoRA left in it.

        Raises:
            RessaError: it was merged before, or the zeros of a weight would change.
        """
        if not any(isinstance(module, SparseLoraLayer) for module in self.model.modules()):
            raise RessaError("SparseLoRA: there is no adapter left to merge; merging twice adds nothing")
        return super().merge_and_unload(progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names)


def _register() -> None:
    """Make peft know the method. Its registry wants a member of its own enum, and offers no way to add one."""
    name = NAME.upper()
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)
    register_peft_method(name=NAME, config_cls=SparseLoraConfig, model_cls=SparseLoraModel)


_register()
