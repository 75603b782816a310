"""How far the blocks of a pruned LLaVA are from those of the dense one, on samples that pruning has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from llava_shape import batches, samples
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from ressa.patterns import NofM

HELD_OUT = 32


@torch.no_grad()
def errors(model: Path, weights: Path) -> dict[str, dict[str, list[float]]]:
    """Relative squared errors of the pruned model's blocks on the held-out samples, in the order of the forward.

    `own`: of the pruned block, given what the dense model gives it, relative to what the dense block adds to its input.
    `arrived`: of what leaves the block in the pruned model, relative to what leaves it in the dense one.
    """
    dense, pruned = (LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval() for _ in "12")
    pruned.load_state_dict(load_file(weights))
    found: dict[str, dict[str, list[float]]] = {}
    for part, blocks in _blocks(dense).items():
        twins = _blocks(pruned)[part]
        sums = [[0.0] * 4 for _ in blocks]
        for batch in batches(samples(HELD_OUT, seed=2), 8):
            asked, arrived = _visits(dense, blocks, batch), _visits(pruned, twins, batch)
            for total, twin, (args, kwargs, y), (_, _, late) in zip(sums, twins, asked, arrived, strict=True):
                terms = (twin(*args, **kwargs) - y, y - args[0], late - y, y)
                total[:] = [have + term.double().square().sum().item() for have, term in zip(total, terms, strict=True)]
        found[part] = {"own": [a / b for a, b, _, _ in sums], "arrived": [c / d for _, _, c, d in sums]}
        linears = [m.weight for block in twins for m in block.modules() if isinstance(m, torch.nn.Linear)]
        assert all(NofM(2, 4).holds(weight) for weight in linears), f"{weights.name}: not 2:4 in {part}"
    return found


def _blocks(model: Any) -> dict[str, list[Any]]:
    return {
        "vision": list(model.model.vision_tower.encoder.layers),
        "language": list(model.model.language_model.layers),
    }


def _visits(model: Any, blocks: list[Any], batch: dict) -> list[tuple[tuple, dict, torch.Tensor]]:
    """Arguments and output of each block in one forward."""
    seen: list[tuple[tuple, dict, torch.Tensor]] = []
    handles = [
        block.register_forward_hook(lambda _, *call: seen.append(call), with_kwargs=True)  # args, kwargs, output
        for block in blocks
    ]
    model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen
