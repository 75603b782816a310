"""SparseLoRA as a method of peft: the layers are put where the config says, and taken away again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.model.matrix import fused
from ressa.repairing.sparse_lora.experts import SparseLoraExperts
from ressa.repairing.sparse_lora.layer import NAME, SparseLoraConfig, SparseLoraLayer, SparseLoraLinear


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
