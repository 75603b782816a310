"""What SparseLoRA may be told, and what all its layers share: which adapter is at work, and what was merged.

Shapes: O out, I in, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.model.precision import restore_zeros, wide
from ressa.repairing.sparse_lora.masked_product import MaskedLinear, StraightThrough, effective_weight

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


class SparseLoraLayer(BaseTunerLayer):
    """A module whose non-zero weights have a low-rank update; one adapter is active at a time."""

    adapter_layer_names = ("sparselora_A", "sparselora_B")
    other_param_names = ("scaling",)
    sparselora_A: Any  # noqa: N815
    sparselora_B: Any  # noqa: N815

    def _begin(self, base_layer: nn.Module, adapter_name: str) -> None:
        self.base_layer: Any = base_layer
        self.scaling: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        self.straight_through: dict[str, bool] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name

    def _register_adapter(self, adapter_name: str, config: SparseLoraConfig, rank: int, alpha: float) -> None:
        """Notes the settings of an adapter whose A and B are there."""
        self.scaling[adapter_name] = alpha / rank
        self.dropout[adapter_name] = config.dropout
        self.straight_through[adapter_name] = config.straight_through
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """To the device of the weight, and never narrower than float32: what is trained must not be rounded away."""
        where = next(self.base_layer.parameters())
        for updates in (self.sparselora_A[adapter_name], self.sparselora_B[adapter_name]):
            for update in [updates] if isinstance(updates, Tensor) else updates.values():
                if update.device.type != "meta":  # peft is about to load it
                    update.data = update.data.to(device or where.device, wide(where))

    def _adapter(self, names: list[str] | None = None) -> str | None:
        """The one adapter among `names` (default: the active ones) that this layer has."""
        here = [name for name in names or self.active_adapters if name in self.sparselora_A]
        if len(here) > 1:
            raise RessaError(f"SparseLoRA: one adapter at a time, not {', '.join(here)}: their sum is not masked once")
        return here[0] if here else None

    def _at_work(self) -> str | None:
        """The adapter that the forward is to apply, if any."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        return None if self.disable_adapters or self.merged else self._adapter()

    def _dropped(self, a_RI: Tensor, name: str) -> Tensor:
        """A (..., R, I) without the inputs that the update does not see at this step."""
        if not (self.training and self.dropout[name]):  # type: ignore[attr-defined]
            return a_RI
        return a_RI * dropout(a_RI.new_ones(*a_RI.shape[:-2], 1, a_RI.shape[-1]), self.dropout[name])

    def _to_merge(self, names: list[str] | None) -> str | None:
        """The adapter that is to be merged, if any. Raises RessaError if one is merged already."""
        if self.merged:
            raise RessaError(
                f"SparseLoRA: {', '.join(self.merged_adapters)} is merged already: a second time would add it twice"
            )
        return self._adapter(names)

    def unmerge(self) -> None:
        """Refused: the merge was rounded once, taking it off again would round twice."""
        raise RessaError("SparseLoRA: a merged update cannot be taken off exactly: load the pruned weights again")


def new_a(*shape: int) -> Tensor:
    """A (..., rank, I), uniform as a linear's weight. B begins as zeros, so that an adapter starts without effect."""
    a = torch.empty(*shape)
    for a_RI in a.view(-1, *shape[-2:]):
        nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
    return a


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
