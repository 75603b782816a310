"""A linear that keeps its weight packed. Up to 8 tokens are multiplied by a kernel, where there is one for its values.

Else, and for more tokens, it is unpacked into a buffer that all such layers share, and torch multiplies. Once prepared
for the kernels (`native.prepare`), the weight is held in that form alone, and given back as it was stored when asked.

Shapes: O outputs, I inputs, T tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ressa.machine import found
from ressa.machine import native as native_dtypes
from ressa.packed import native
from ressa.packed.format import BITMASK, SCALE, VALUES, Packed, unpack

STORED = (VALUES, BITMASK, SCALE)
PREPARED = "prepared"

_LOCAL = threading.local()  # a buffer for each thread: two that compute at once must not share one


class PackedLinear(nn.Module):
    """As `nn.Linear`, with values, bitmask and scales in the place of its weight. For inference: it has no gradients.

    Their dtypes are the file's, whatever `.to(dtype)` or `.float()` make of the rest of the model.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        stored: Mapping[str, Tensor],
        *,
        group: int = 64,
        bias: nn.Parameter | None = None,
        like: Tensor | None = None,
    ) -> None:
        """
        Args:
            shape: (O, I).
            stored: tensors by the names of the format: `weight_values` and, where there are any, the two others.
            like: an empty tensor of the dtype that `weight` is to have, where this layer is to stand. [float32]
        """
        super().__init__()
        self.out_features, self.in_features = shape
        self.group = group
        self.register_parameter("bias", bias)
        for name in STORED:
            self.register_buffer(name, stored.get(name))
        self.register_buffer(PREPARED, None, persistent=False)
        self.like: Tensor
        self.register_buffer("like", torch.empty(0) if like is None else like, persistent=False)

    def prepare(self) -> bool:
        """Repacks the weight for this processor's kernels, in the place of what was stored; whether there are any."""
        if self._buffers[PREPARED] is None and (prepared := native.prepare(self.packed)) is not None:
            self._buffers.update(dict.fromkeys(STORED))
            self._buffers[PREPARED] = prepared
        return self._buffers[PREPARED] is not None

    def restore(self) -> bool:
        """Undoes `prepare`; whether there was anything to undo."""
        ready = self._buffers[PREPARED] is not None
        self._buffers.update(self._stored())
        self._buffers[PREPARED] = None
        return ready

    @property
    def packed(self) -> Packed:
        """What the weight is kept as, or was stored as: anew then, to the bit."""
        prepared = self._buffers[PREPARED]
        if prepared is not None:
            return native.restore(prepared)
        values, bitmask, scale = (self._buffers[name] for name in STORED)
        assert values is not None
        return Packed((self.out_features, self.in_features), values, bitmask, scale, self.group)

    @property
    def weight(self) -> Tensor:
        """(O, I), unpacked anew: writing into it changes nothing."""
        return unpack(self.packed, self.like.new_empty(self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:  # what reads the weight could not tell
            raise RuntimeError(f"a linear of {self.in_features} inputs is given {x.shape[-1]}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        prepared = self._buffers[PREPARED]
        if prepared is not None:
            return torch.ops.ressa.prepared_linear(x, prepared, self.bias, self.out_features)
        values, bitmask, scale = (self._buffers[name] for name in STORED)
        op = torch.ops.ressa.packed_linear
        return op(x, values, bitmask, scale, self.bias, self.out_features, self.group)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{text}, values={self.kind}, kernel={self._buffers[PREPARED] is not None}"

    @property
    def kind(self) -> str:
        """What values are kept as: bf16, fp16, fp32, int8 or int4."""
        prepared = self._buffers[PREPARED]
        return (self.packed if prepared is None else native.told(prepared)).kind

    def _stored(self) -> dict[str, Tensor | None]:
        packed = self.packed
        return {VALUES: packed.values, BITMASK: packed.bitmask, SCALE: packed.scale}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        """Moves what is packed to another device, where it is as it was stored, and leaves its dtypes."""
        held = {name: self._buffers[name] for name in (*STORED, PREPARED)}
        self._buffers.update(dict.fromkeys(held))
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(held)
        if self.like.device.type != "cpu":
            self.restore()
        for name in STORED:
            tensor = self._buffers[name]
            if tensor is not None:
                plain = tensor.is_meta or not tensor.is_floating_point()
                self._buffers[name] = fn(tensor) if plain else tensor.to(self.like.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._buffers[PREPARED] is not None:
            stored = {f"{prefix}{name}": tensor for name, tensor in self._stored().items()}
            destination.update({name: tensor for name, tensor in stored.items() if tensor is not None})

    def _load_from_state_dict(self, *args: Any) -> None:
        ready = self.restore()
        super()._load_from_state_dict(*args)
        if ready:
            self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: as it was stored, for they may come to another processor."""
        buffers = dict(self._buffers) | self._stored() | {PREPARED: None}
        return self.__dict__ | {"_buffers": buffers, "_ready": self._buffers[PREPARED] is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ready = state.pop("_ready")
        super().__setstate__(state)
        if ready:
            self.prepare()


@torch.library.custom_op(
    "ressa::prepared_linear",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor prepared, Tensor? bias, int outputs) -> Tensor",
)
def _prepared_linear(x: Tensor, prepared: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Of few tokens by a kernel, else as `packed_linear`."""
    inputs = x.shape[-1]
    x_TI = x.reshape(-1, inputs)
    if not 0 < len(x_TI) <= native.TOKENS:
        return _multiplied(x, (outputs, inputs), bias, lambda weight_OI: native.unpack(prepared, weight_OI))
    dtype = x.dtype if x.dtype in native.DTYPES else torch.float32
    bias = None if bias is None else bias.to(dtype).contiguous()
    y_TO = native.matvec(prepared, x_TI.to(dtype).contiguous(), bias, outputs)
    return y_TO.to(x.dtype).view(*x.shape[:-1], outputs)


@_prepared_linear.register_fake
def _(x: Tensor, prepared: Any, bias: Any, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


@torch.library.custom_op(
    "ressa::packed_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor values, Tensor? bitmask, Tensor? scale, Tensor? bias, int outputs, int group) -> Tensor",
)
def _packed_linear(
    x: Tensor,
    values: Tensor,
    bitmask: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    outputs: int,
    group: int,
) -> Tensor:
    """`F.linear` with the unpacked weight, in the dtype of x where this device multiplies it natively, else float32."""
    shape = (outputs, x.shape[-1])
    packed = Packed(shape, values, bitmask, scale, group)
    return _multiplied(x, shape, bias, lambda weight_OI: unpack(packed, weight_OI))


def _multiplied(x: Tensor, shape: tuple[int, int], bias: Tensor | None, unpacked: Callable[[Tensor], Tensor]) -> Tensor:
    dtype = x.dtype if x.dtype in native_dtypes(x.device.type, found()) else torch.float32
    weight_OI = unpacked(_scratch(shape, dtype, x.device))
    return functional.linear(x.to(dtype), weight_OI, None if bias is None else bias.to(dtype)).to(x.dtype)


@_packed_linear.register_fake
def _(x: Tensor, values: Any, bitmask: Any, scale: Any, bias: Any, outputs: int, group: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


def _scratch(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(O, I), in the one buffer of this thread, dtype and device, which is as large as the largest layer so far."""
    buffers: dict[Any, Tensor] = _LOCAL.__dict__
    size = shape[0] * shape[1]
    if (dtype, device) not in buffers or buffers[dtype, device].numel() < size:
        buffers.pop((dtype, device), None)
        with torch.inference_mode(False):  # or it could not be written outside of inference mode later
            buffers[dtype, device] = torch.empty(size, dtype=dtype, device=device)
    return buffers[dtype, device][:size].view(shape)
