"""inspect: the parts of a model, what would be pruned, what not and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ressa.data.seeing import sample_seen
from ressa.errors import RessaError
from ressa.model.streamed import Streamed, load_streamed
from ressa.model.structure import BY_DEFAULT, PARTS, Part, structure
from ressa.patterns import parse
from ressa.settings import check_paths

UNSEEN = "not seen"


def inspect(model: str | Path, sparsity: str = "2:4") -> dict[str, Any]:
    """What `model` is made of, and what pruning it to `sparsity` would touch; a block is in memory at a time.

    Returns:
        {"parts": {name: {modules, parameters, blocks, linears, weights, zeros, pruned_by_default,
         can_be_pruned}},
          "pictures": how the model sees them ("tokens", "pixels", None if it reads text only), or why it does not,
         "kept": {module name: why it is never pruned}, "unfit": {linear name: why the pattern does not fit it}}
    """
    check_paths("inspect", model=model)
    pattern = parse(sparsity)
    net, processor, streamed = load_streamed(model)
    plan = structure(net)
    unfit = {}
    for block in plan.blocks():
        for name, linear in block.linears.items():
            try:
                pattern.check(linear.weight.shape, name)
            except RessaError as error:
                unfit[name] = str(error)
    parts = {name: _part(part, streamed) for name, part in plan.parts.items()}
    report = {"model": str(model), "sparsity": sparsity, "parts": parts, "pictures": _pictures(net, processor)}
    return report | {"kept": plan.kept, "unfit": unfit}


def _pictures(net: Any, processor: Any) -> str | None:
    try:
        return sample_seen(net, processor)
    except RessaError as error:
        return f"{UNSEEN}: {error}"


def _part(part: Part, streamed: Streamed) -> dict[str, Any]:
    weights = zeros = 0
    for block in part.blocks:
        with streamed.present(block):
            for linear in block.linears.values():
                weight_OI = linear.weight  # one is unpacked at once
                weights, zeros = weights + weight_OI.numel(), zeros + weight_OI.numel() - int(weight_OI.count_nonzero())
    return {
        "modules": list(part.modules),
        "parameters": part.parameters,
        "blocks": len(part.blocks),
        "linears": sum(len(block.linears) for block in part.blocks),
        "weights": weights,
        "zeros": zeros,
        "pruned_by_default": part.name in BY_DEFAULT,
        "can_be_pruned": part.name in PARTS,
    }
