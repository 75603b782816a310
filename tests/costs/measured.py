"""What is measured beside what is reckoned: bytes that tensors hold, and operations."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within held at one time."""

    def __init__(self):
        super().__init__()
        self.live = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = op(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor) or x.is_meta:
                continue
            if (storage := x.untyped_storage())._cdata not in given | self.known:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.most = max(self.most, self.live)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key, size):
        self.known.discard(key)
        self.live -= size


def counting() -> FlopCounterMode:
    """torch counts no product that adds in place; the Grams and SparseGPT's steps are such."""
    added = lambda _, a, b, *rest, out_shape=None, **more: 2 * a[0] * a[1] * b[1]  # noqa: E731
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added})
