"""What `walk` does with tensors: move whole argument trees, tell batches apart."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def moved(tree: Any, device: torch.device) -> Any:
    """`tree` with every tensor on `device`; a tensor that occurs twice is one tensor there too."""
    copies: dict[int, Tensor] = {}

    def move(leaf: Any) -> Any:
        return copies.setdefault(id(leaf), leaf.to(device)) if isinstance(leaf, Tensor) else leaf

    return tree_map(move, tree)


def give_back() -> None:
    """Returns what was freed between tensors that stay to the system. Where glibc allocates, which would keep it."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def version(tensor: Tensor) -> int:
    """Grows whenever the tensor is overwritten; inference tensors do not keep count."""
    return 0 if tensor.is_inference() else tensor._version


def kind_of(value: Any) -> Any:
    """The whole shape of pictures; of tokens only how many sequences, for their length does not change the way."""
    if not isinstance(value, Tensor):
        return repr(value)
    return tuple(value.shape) if value.is_floating_point() else (value.shape[0], value.ndim)
