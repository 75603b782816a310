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

import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.repair.masked import MaskedLinear, StraightThrough, effective_weight, keep_kept, wide

NAME = "sparselora"


@dataclass
class SparseLoraConfig(PeftConfig):
    """What SparseLoRA may be told. Fields not listed here are peft's own.

    Dropout is that of LoRA, on the input of the low-rank path, with one difference: which inputs are dropped is drawn
    once for a layer and step, not for each token. So it is a dropout of columns of A, and costs nothing; drawn for each
    token, the path would need a full-size product of its own.
    """

    rank: int = field(default=8, metadata={"help": "Rank of the update."})
    alpha: float = field(default=16.0, metadata={"help": "The update is scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Share of inputs that the update does not see at a step."})
    straight_through: bool = field(
        default=False, metadata={"help": "Leave the mask out of the gradients of A and B: cheaper, and biased."}
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names (or ends of names) of the linears, or one regular expression."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names to leave out."})
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Ranks of single linears, by name or regular expression."}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Alphas of single linears, by name or regular expression."}
    )
    bias: str = field(default="none", metadata={"help": "Biases to train: 'none', 'all' or 'sparselora_only'."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(NAME.upper())
        for rank in (self.rank, *self.rank_pattern.values()):
            if rank < 1:
                raise RessaError(f"SparseLoRA: rank must be at least 1, not {rank}")
        if not 0 <= self.dropout < 1:
            raise RessaError(f"SparseLoRA: dropout must be at least 0 and below 1, not {self.dropout}")


class SparseLoraLinear(nn.Module, BaseTunerLayer):
    """An `nn.Linear` or `Conv1D` whose non-zero weights have a low-rank update; one adapter is active at a time.

    `twins` are the layers (this one too) that share its weight; they share A and B, and are merged once.
    """

    adapter_layer_names = ("sparselora_A", "sparselora_B")
    other_param_names = ("scaling",)

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SparseLoraConfig, rank: int, alpha: float
    ) -> None:
        super().__init__()
        self.base_layer: Any = base_layer
        self.transposed = isinstance(self.base_layer, Conv1D)
        self.out_features, self.in_features = self._weight_OI(self.base_layer.weight).shape
        self.sparselora_A, self.sparselora_B = nn.ParameterDict(), nn.ParameterDict()
        self.scaling: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        self.straight_through: dict[str, bool] = {}
        self.twins: list[SparseLoraLinear] = [self]
        self.tied_to: str | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._merged_by_twin = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, rank, alpha)

    def update_layer(self, adapter_name: str, config: SparseLoraConfig, rank: int, alpha: float) -> None:
        """Add one adapter: A (rank, I) uniform as a linear's weight, B (O, rank) zero, so it starts without effect."""
        a_RI = torch.empty(rank, self.in_features)
        nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
        self.sparselora_A[adapter_name] = nn.Parameter(a_RI)
        self.sparselora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, rank))
        self.scaling[adapter_name] = alpha / rank
        self.dropout[adapter_name] = config.dropout
        self.straight_through[adapter_name] = config.straight_through
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def share(self, twin: SparseLoraLinear) -> None:
        """Take the adapters of `twin`, whose weight this layer's is: one weight has one update."""
        for name in self.sparselora_A:
            self.sparselora_A[name], self.sparselora_B[name] = twin.sparselora_A[name], twin.sparselora_B[name]
        if self not in twin.twins:
            twin.twins.append(self)
        self.twins = twin.twins

    def _weight_OI(self, weight: Any) -> Any:
        return weight.mT if self.transposed else weight

    def _adapter(self, names: list[str] | None = None) -> str | None:
        """The one adapter among `names` (default: the active ones) that this layer has."""
        here = [name for name in names or self.active_adapters if name in self.sparselora_A]
        if len(here) > 1:
            raise RessaError(f"SparseLoRA: one adapter at a time, not {', '.join(here)}: their sum is not masked once")
        return here[0] if here else None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., I) -> (..., O)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        name = self._adapter()
        if self.disable_adapters or self.merged or name is None:
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
        a_RI, b_OR = self.sparselora_A[name], self.sparselora_B[name]
        if self.training and self.dropout[name]:
            a_RI = a_RI * dropout(a_RI.new_ones(self.in_features), self.dropout[name])
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
        if self.merged:
            raise RessaError(
                f"SparseLoRA: {', '.join(self.merged_adapters)} is merged already: a second time would add it twice"
            )
        name = self._adapter(adapter_names)
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

    def unmerge(self) -> None:
        """Refused: the merge was rounded once, taking it off again would round twice."""
        raise RessaError("SparseLoRA: a merged update cannot be taken off exactly: load the pruned weights again")


class SparseLoraModel(BaseTuner):
    """peft's model side: puts a `SparseLoraLinear` where the config says, and takes it away again."""

    prefix = f"{NAME}_"
    tuner_layer_cls = SparseLoraLinear
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
        if isinstance(target, SparseLoraLinear):
            target.update_layer(adapter_name, config, rank, alpha)
            if target is not target.twins[0]:
                target.share(target.twins[0])
            return
        if not isinstance(target, nn.Linear | Conv1D) or not target.weight.is_floating_point():
            kind = type(target).__name__
            raise RessaError(
                f"SparseLoRA: '{current_key}' is a {kind}, not a plain linear: name only linears in target_modules"
            )
        layer = SparseLoraLinear(target, adapter_name, config, rank, alpha)
        self._tie(layer)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is made the active one
        self._replace_module(parent, target_name, layer, target)

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
        if not any(isinstance(module, SparseLoraLinear) for module in self.model.modules()):
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
