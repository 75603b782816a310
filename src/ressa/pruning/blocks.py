"""One block pruned where it stands, for the inputs that calibration found or by its weights alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ressa.errors import RessaError, RessaWarning
from ressa.methods.magnitude import magnitude
from ressa.model.matrix import is_expert
from ressa.model.structure import Block
from ressa.patterns import NofM, Pattern
from ressa.statistics import AT_ONCE, Gram, Method


@torch.no_grad()
def prune_block(
    method: Method,
    block: Block,
    inputs: Mapping[str, Any],
    patterns: Mapping[str, Pattern],
    linears: Iterable[str] | None = None,
) -> None:
    """Prunes the linears of one block (or only these) where they stand, given the statistics of their inputs.

    An expert that no token was sent to is pruned by magnitude, with a UserWarning.

    Raises:
        RessaError: a linear, not an expert, of whose inputs nothing is known.
    """
    idle: list[str] = []
    for names in _alike(method, block.linears if linears is None else linears, inputs, patterns):
        unread = [name for name in names if not _known(name, inputs)]
        for name in unread:
            if not is_expert(block.linears[name]):
                raise RessaError(
                    f"no calibration token reaches {name}, though its block runs: use records that reach it, leave its "
                    "part out, or prune by magnitude, which needs none"
                )
        idle += unread
        weights = [block.linears[name].weight for name in names]
        pattern = patterns[names[0]]
        for slabs in _at_once(method, weights, pattern):
            slab_OI = torch.cat(slabs) if len(slabs) > 1 else slabs[0]
            pruned_OI = magnitude(slab_OI, None, pattern) if unread else method(slab_OI, inputs[names[0]], pattern)
            for weight_OI, part_OI in zip(slabs, pruned_OI.split([len(w) for w in slabs]), strict=True):
                weight_OI.copy_(part_OI)
    if idle:
        more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
        warnings.warn(
            f"no calibration token was sent to {idle[0]}{more}: pruned by magnitude", RessaWarning, stacklevel=2
        )


def _at_once(method: Method, weights: list[Tensor], pattern: Pattern) -> list[list[Tensor]]:
    """All rows, where a Gram is solved once for them or they depend on one another; else few at a time."""
    if not _rows_alone(method, pattern) or (method.needs is not None and issubclass(method.needs, Gram)):
        return [weights]
    return [[slab] for weight in weights for slab in weight.split(max(AT_ONCE // weight.shape[1], 1))]


def _rows_alone(method: Method, pattern: Pattern) -> bool:
    return method.by_row and (isinstance(pattern, NofM) or pattern.group == "row")


def _known(name: str, inputs: Mapping[str, Any]) -> bool:
    return name in inputs and (inputs[name] is None or inputs[name].tokens > 0)


def _alike(
    method: Method, linears: Iterable[str], inputs: Mapping[str, Any], patterns: Mapping[str, Pattern]
) -> list[list[str]]:
    """The linears to prune; those whose rows can be pruned as rows of one matrix (query, key and value) together."""
    groups: dict[Any, list[str]] = {}
    for name in linears:
        pattern = patterns[name]
        if pattern.sparsity:
            shared = inputs.get(name) if _rows_alone(method, pattern) else None
            groups.setdefault((id(shared), pattern) if shared is not None else name, []).append(name)
    return list(groups.values())
