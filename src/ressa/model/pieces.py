"""A model in pieces of a tensor or a few, for what runs no module: each is read, changed, written and dropped alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ressa.model.matrix import AsLinear
from ressa.model.roots import find_roots, home
from ressa.model.structure import Block, Structure, structure
from ressa.packed.loading import Names


@dataclass(frozen=True)
class Place:
    """Where a parameter belongs, and what stands there while it is not in memory."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def parameter(self) -> nn.Parameter:
        return self.module.get_parameter(self.attribute)

    def put(self, parameter: nn.Parameter) -> None:
        setattr(self.module, self.attribute, parameter)


def owners_of(net: nn.Module) -> Counter[int]:
    """How many modules each parameter belongs to: more than one if it is tied."""
    return Counter(id(parameter) for module in net.modules() for parameter in module.parameters(recurse=False))


def places_in(piece: Block) -> list[Place]:
    """All parameters of a piece."""
    return [
        Place(f"{name}.{attribute}", module, attribute)
        for name, module in piece.module.named_modules(prefix=piece.name)
        for attribute, _ in module.named_parameters(recurse=False)
    ]


def pieces_of(net: PreTrainedModel, parts: Structure | None = None) -> list[Block]:
    """The highest modules that have parameters of their own and hold no block, as blocks with the linears in them.

    In most models each is a linear, a norm or an embedding. Those with tied parameters are left out, and so are the
    parameters that a model has beside its modules. Nothing is found where the files hold tensors in another cut
    (experts, or query, key and value, joined), of which one may belong to several pieces, or if a linear is left out.
    `parts` are those of the model, where they are known.
    """
    if Names(net, None).converters:
        return []
    blocks, owners, roots = (parts or structure(net)).blocks(), owners_of(net), find_roots(net)
    linears: dict[int, dict[str, Any]] = {}
    for name, linear in (pair for block in blocks for pair in block.linears.items()):
        linears.setdefault(id(linear.module if isinstance(linear, AsLinear) else linear), {})[name] = linear
    above = {prefix for block in blocks for prefix in _above(block.name)}
    found: list[Block] = []
    for name, module in net.named_modules():
        inside = found and name.startswith(f"{found[-1].name}.")
        if name in above or inside or not [*module.parameters(recurse=False)]:
            continue
        own = {name: one for inner in module.modules() for name, one in linears.get(id(inner), {}).items()}
        found.append(Block(name, getattr(home(name, roots), "part", "language"), module, own))
    apart = [one for one in found if all(owners[id(parameter)] == 1 for parameter in one.module.parameters())]
    missed = {name for block in blocks for name in block.linears} - {name for one in apart for name in one.linears}
    return [] if missed else apart


def _above(name: str) -> list[str]:
    """The names of the modules above: of a.b.c those of the model itself, a and a.b."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]
