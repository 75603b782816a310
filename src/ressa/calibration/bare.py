"""Linears whose weight a block multiplies by itself, without calling them: Mamba's `dt_proj.weight @ time_step`.

No hook hears them. So while the block runs, every product is looked at, as with fused experts (`experts.py`).

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ressa.calibration.experts import PRODUCTS


class BareReads(TorchFunctionMode):
    """Notes what the weights of these linears are multiplied with: `reads`, {name: [(..., T, I)]}."""

    def __init__(self, linears: Mapping[str, nn.Linear]) -> None:
        super().__init__()
        self.reads: dict[str, list[Tensor]] = {}
        self._weights = {linear.weight.data_ptr(): (name, linear.weight.shape) for name, linear in linears.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and len(args) > 1 and all(isinstance(arg, Tensor) for arg in args[:2]):
            self._note(func, *args[:2])
        return func(*args, **(kwargs or {}))

    def _note(self, func: Any, left: Tensor, right: Tensor) -> None:
        name, shape_OI = self._weights.get(left.data_ptr(), ("", None))
        if shape_OI == left.shape:
            self.reads.setdefault(name, []).append(right.mT)
            return
        name, shape_OI = self._weights.get(right.data_ptr(), ("", None))
        if shape_OI is not None and right.shape == (shape_OI if func is nn.functional.linear else shape_OI[::-1]):
            self.reads.setdefault(name, []).append(left)
