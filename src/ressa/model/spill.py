"""Tensors that wait for their turn in files: mapped into memory, so that the kernel may write them out and forget them.

The storage under a tensor is exchanged and the tensor stays the same object, so whoever holds it holds it on the disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

SMALLEST = 4096  # bytes: a page


@torch.no_grad()
def spill(tree: Any, folder: Path) -> None:
    """Lays every tensor of `tree` that is worth it into a file in `folder`, which goes when nobody holds it any more.

    Left in memory are parameters, small tensors, and what does not lie there row by row (a mask that is expanded).
    Raises OSError if the disk has no room.
    """
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) and _worth(leaf):
            leaf.data = _mapped(leaf, folder)
            leaf._spilled = True  # type: ignore[attr-defined]


def _worth(leaf: Tensor) -> bool:
    whole = leaf.untyped_storage().nbytes() == leaf.nbytes >= SMALLEST
    return whole and leaf.device.type == "cpu" and leaf.is_contiguous() and not hasattr(leaf, "_spilled")


def _mapped(leaf: Tensor, folder: Path) -> Tensor:
    with NamedTemporaryFile(dir=folder, prefix=".activations-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, leaf.nbytes)  # writing to a mapped file that is too short kills
        else:
            os.truncate(file.fileno(), leaf.nbytes)
        storage: Any = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=leaf.nbytes)
    return torch.empty(0, dtype=leaf.dtype).set_(storage, 0, leaf.shape, leaf.stride()).copy_(leaf)
