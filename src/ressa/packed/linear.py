"""A linear that keeps its weight packed, and unpacks it at every call into a buffer that all such layers share.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ressa.machine import found, native
from ressa.packed.format import BITMASK, SCALE, VALUES, Packed, unpack

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
        for name in (VALUES, BITMASK, SCALE):
            self.register_buffer(name, stored.get(name))
        self.like: Tensor
        self.register_buffer("like", torch.empty(0) if like is None else like, persistent=False)

    @property
    def packed(self) -> Packed:
        """What the weight is kept as."""
        values, bitmask, scale = (self._buffers[name] for name in (VALUES, BITMASK, SCALE))
        assert values is not None
        return Packed((self.out_features, self.in_features), values, bitmask, scale, self.group)

    @property
    def weight(self) -> Tensor:
        """(O, I), unpacked anew: writing into it changes nothing."""
        return unpack(self.packed, self.like.new_empty(self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        values, bitmask, scale = (self._buffers[name] for name in (VALUES, BITMASK, SCALE))
        op = torch.ops.ressa.packed_linear
        return op(x, values, bitmask, scale, self.bias, self.out_features, self.group)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{text}, values={self.packed.kind}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        """Moves what is packed to another device, and leaves its dtypes."""
        own = {name: self._buffers[name] for name in (VALUES, BITMASK, SCALE)}
        self._buffers.update(dict.fromkeys(own))
        super()._apply(fn, recurse)
        for name, tensor in own.items():
            if tensor is not None:
                plain = tensor.is_meta or not tensor.is_floating_point()
                self._buffers[name] = fn(tensor) if plain else tensor.to(self.like.device)
        return self


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
    dtype = x.dtype if x.dtype in native(x.device.type, found()) else torch.float32
    shape = (outputs, x.shape[-1])
    weight_OI = unpack(Packed(shape, values, bitmask, scale, group), _scratch(shape, dtype, x.device))
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
