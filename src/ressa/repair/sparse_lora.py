"""SparseLoRA: a low-rank update that lives only where a pruned weight is not zero, as a peft method.

    W_eff = W + (alpha / rank) * (B @ A) * [W != 0]

The zeros of the weight are the mask: there is no mask buffer, and merging cannot fill a zero. The gradients are exact,

    dB = s * (G * [W != 0]) @ A.T      dA = s * B.T @ (G * [W != 0])      G = dY.T @ X,

and ``W_eff`` is computed again in the backward, so autograd keeps nothing but the input and parameters (a fused masked
LoRA that autograd writes for itself keeps one more copy of the model). Idea of the masked product: RESSA
(arXiv 2404.02424), SQFT; of the recomputation: LoRS.

Shapes: O out, I in, R rank, T tokens (every dimension before the last).

    >>> config = SparseLoraConfig(rank=8, alpha=16, target_modules=["q_proj", "v_proj"])    # doctest: +SKIP
    >>> model = peft.get_peft_model(pruned, config)                                         # doctest: +SKIP
    >>> repaired = model.merge_and_unload()                                                 # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ressa.errors import RessaError

NAME = "sparselora"
CHUNK = 1 << 22  # weights per float32 workspace (16 MB): bounds every temporary that is not a GEMM operand


def row_chunks(weight_OI: Tensor) -> Iterator[slice]:
    """Slices of rows of at most CHUNK weights each (at least one row)."""
    rows = max(1, CHUNK // max(1, weight_OI.shape[1]))
    return (slice(start, start + rows) for start in range(0, weight_OI.shape[0], rows))


def effective_weight(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """``W + scale * (B @ A) * [W != 0]`` added in the widest of the three dtypes (at least float32), cast once.

    Zeros of the weight stay exactly zero, whatever A and B hold.
    """
    wide = torch.promote_types(torch.float32, torch.promote_types(weight_OI.dtype, a_RI.dtype))
    effective_OI = torch.empty_like(weight_OI, dtype=dtype)
    for rows in row_chunks(weight_OI):
        part = weight_OI[rows]
        delta = (b_OR[rows].to(wide) @ a_RI.to(wide)).mul_(scale).add_(part)
        effective_OI[rows] = delta.masked_fill_(part == 0, 0)
    return effective_OI


class MaskedLinear(torch.autograd.Function):
    """``x @ W_eff.T + bias`` with exact gradients for x, weight, bias, A and B; keeps x and parameters, not W_eff."""

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale: float, dtype: torch.dtype) -> Tensor:
        """x (..., I) -> (..., O) in `dtype`, the dtype of the products (the autocast dtype under autocast)."""
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR)
        ctx.scale, ctx.dtype, ctx.bias_dtype = scale, dtype, None if bias_O is None else bias_O.dtype
        with torch.autocast(x.device.type, enabled=False):  # A @ B in float32 even where the caller asks for bfloat16
            effective_OI = effective_weight(weight_OI, a_RI, b_OR, scale, dtype)
            return linear(x.to(dtype), effective_OI, None if bias_O is None else bias_O.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight_OI, a_RI, b_OR = ctx.saved_tensors
        need_x, need_weight, need_bias, need_a, need_b = ctx.needs_input_grad[:5]
        dx = dweight = dbias = da = db = None
        with torch.autocast(x.device.type, enabled=False):
            dy_TO = dy.reshape(-1, dy.shape[-1])
            if need_x:
                effective_OI = effective_weight(weight_OI, a_RI, b_OR, ctx.scale, ctx.dtype)
                dx = (dy_TO @ effective_OI).view(x.shape).to(x.dtype)
            if need_bias:
                dbias = dy_TO.sum(0, dtype=ctx.bias_dtype)
            if need_weight or need_a or need_b:
                x_TI = x.reshape(-1, x.shape[-1]).to(ctx.dtype)
                dweight, da, db = _parameter_gradients(x_TI, dy_TO, weight_OI, a_RI, b_OR, ctx.scale, need_weight)
        return dx, dweight, dbias, da, db, None, None


def _parameter_gradients(
    x_TI: Tensor, dy_TO: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, need_weight: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of weight, A and B, from row chunks of ``G = dY.T @ X``: G as a whole never exists."""
    dweight_OI = torch.empty_like(weight_OI) if need_weight else None
    da_RI, db_OR = torch.zeros_like(a_RI), torch.empty_like(b_OR)
    for rows in row_chunks(weight_OI):
        gradient = (dy_TO[:, rows].mT @ x_TI).to(a_RI.dtype)
        if dweight_OI is not None:
            dweight_OI[rows] = gradient
        gradient.masked_fill_(weight_OI[rows] == 0, 0)
        torch.mm(gradient, a_RI.mT, out=db_OR[rows])
        da_RI.addmm_(b_OR[rows].to(a_RI.dtype).mT, gradient, alpha=scale)
    return dweight_OI, da_RI, db_OR.mul_(scale)


def keep_kept(new_OI: Tensor, old_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast `new_OI` to `dtype` so that exactly the zeros of `old_OI` are zeros.

    A kept weight that lands on zero (it cancelled, or it is too small for the dtype) becomes the smallest normal
    number instead: the zeros are the mask, and a mask that grows by rounding would no longer be the pruned one.

    Raises:
        RessaError: a weight is not finite, or a zero is no longer zero.
    """
    cast_OI, tiny = new_OI.to(dtype), torch.finfo(dtype).tiny
    cast_OI = cast_OI.masked_fill((cast_OI == 0) & (old_OI != 0), tiny)
    if not torch.isfinite(cast_OI).all():
        raise RessaError("SparseLoRA: the update is not finite, nothing was merged: train with a smaller learning rate")
    if not torch.equal(cast_OI == 0, old_OI == 0):
        raise RessaError("SparseLoRA: the update would fill zeros of the pruned weight, nothing was merged")
    return cast_OI


@dataclass
class SparseLoraConfig(PeftConfig):
    """What SparseLoRA may be told. Fields not listed here are peft's own.

    There is no dropout: dropout on the input of the low-rank path alone needs a second full-size product per linear
    (the path goes through the mask), so a value other than 0 is refused instead of being ignored.
    """

    rank: int = field(default=8, metadata={"help": "Rank of the update."})
    alpha: float = field(default=16.0, metadata={"help": "The update is scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Only 0; see the class."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names (or ends of names) of the linears, or one regular expression."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names to leave out."})
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Ranks of single linears, by name or regular expression."}
    )
    bias: str = field(default="none", metadata={"help": "Biases to train: 'none', 'all' or 'sparselora_only'."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(NAME.upper())
        for rank in (self.rank, *self.rank_pattern.values()):
            if rank < 1:
                raise RessaError(f"SparseLoRA: rank must be at least 1, not {rank}")
        if self.dropout:
            raise RessaError(f"SparseLoRA: dropout must be 0, not {self.dropout}: no exact masked form of it is cheap")


class SparseLoraLinear(nn.Module, BaseTunerLayer):
    """An `nn.Linear` whose non-zero weights have a low-rank update; one adapter is active at a time."""

    adapter_layer_names = ("sparselora_A", "sparselora_B")
    other_param_names = ("scaling",)

    def __init__(self, base_layer: nn.Linear, adapter_name: str, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.sparselora_A, self.sparselora_B = nn.ParameterDict(), nn.ParameterDict()
        self.scaling: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, rank, alpha)

    def update_layer(self, adapter_name: str, rank: int, alpha: float, inference_mode: bool = False) -> None:
        """Add one adapter: A (rank, I) uniform as a linear's weight, B (O, rank) zero, so it starts without effect."""
        a_RI = torch.empty(rank, self.in_features)
        nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
        self.sparselora_A[adapter_name] = nn.Parameter(a_RI)
        self.sparselora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, rank))
        self.scaling[adapter_name] = alpha / rank
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _adapter(self, names: list[str] | None = None) -> tuple[Tensor, Tensor, float] | None:
        """A, B and scale of the one adapter among `names` (default: the active ones) that this layer has."""
        here = [name for name in names or self.active_adapters if name in self.sparselora_A]
        if len(here) > 1:
            raise RessaError(f"SparseLoRA: one adapter at a time, not {', '.join(here)}: their sum is not masked once")
        return (self.sparselora_A[here[0]], self.sparselora_B[here[0]], self.scaling[here[0]]) if here else None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., I) -> (..., O)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapter = self._adapter()
        if self.disable_adapters or self.merged or adapter is None:
            return self.base_layer(x, *args, **kwargs)
        device, dtype = x.device.type, self.base_layer.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif x.dtype != dtype:
            raise RessaError(f"SparseLoRA: input is {x.dtype} but the weight is {dtype}: cast one, or use autocast")
        return MaskedLinear.apply(x, self.base_layer.weight, self.base_layer.bias, *adapter, dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the update to the weight, in float32 and cast once. Always checked, so `safe_merge` changes nothing.

        Raises:
            RessaError: an adapter is merged already, or the zeros of the weight would change.
        """
        if self.merged:
            raise RessaError(
                f"SparseLoRA: {', '.join(self.merged_adapters)} is merged already: a second time would add it twice"
            )
        adapter = self._adapter(adapter_names)
        if adapter is None:
            return
        old_OI = self.get_base_weight()
        wide = torch.promote_types(torch.float32, old_OI.dtype)
        self.set_base_weight(keep_kept(effective_weight(old_OI, *adapter, wide), old_OI, old_OI.dtype))
        self.merged_adapters = [name for name in adapter_names or self.active_adapters if name in self.sparselora_A]

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
        if isinstance(target, SparseLoraLinear):
            return target.update_layer(adapter_name, rank, config.alpha, config.inference_mode)
        if not isinstance(target, nn.Linear) or not target.weight.is_floating_point():
            kind = type(target).__name__
            raise RessaError(
                f"SparseLoRA: '{current_key}' is a {kind}, not a plain linear: name only linears in target_modules"
            )
        layer = SparseLoraLinear(target, adapter_name, rank, config.alpha)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is made the active one
        self._replace_module(parent, target_name, layer, target)

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
