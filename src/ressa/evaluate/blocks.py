"""How far each block's output is from the dense model's: where in the model pruning hurts.

Shapes: B sequences, T tokens, D width of the block's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ressa.calibration.tokens import token_weights
from ressa.data.prompts import to_device
from ressa.evaluate.generate import measuring
from ressa.model.structure import Block, structure


def block_errors(
    model: Any, dense: Any, batches: Sequence[Mapping[str, Any]], parts: Sequence[str] = ("vision", "language")
) -> dict[str, float]:
    """The relative squared error of every block's output, |pruned - dense|² / |dense|², over the tokens that count.

    Both models run the same teacher-forced batches from end to end, so a block's error includes what the blocks before
    it did. A block that no batch enters is left out.

    Args:
        batches: what `calibration.samples` gives.
    """
    sums: dict[str, tuple[float, float]] = {}
    blocks, originals = (structure(net).blocks(parts) for net in (model, dense))
    with measuring(model), measuring(dense):
        for batch in batches:
            weights = token_weights(batch, dense.config)
            ours, theirs = _outputs(model, blocks, batch), _outputs(dense, originals, batch)
            for block in originals:
                for y, reference in zip(ours.get(block.name, ()), theirs.get(block.name, ()), strict=True):
                    count = weights.of(block, block.name, reference, crossed=False)
                    counts = torch.ones(reference.shape[:-1]) if count is None else count.float().cpu()
                    far, size = sums.get(block.name, (0.0, 0.0))
                    far += _weighed(y - reference, counts)
                    sums[block.name] = far, size + _weighed(reference, counts)
    return {name: far / size if size else 0.0 for name, (far, size) in sums.items()}


def _weighed(x_BTD: Tensor, counts_BT: Tensor) -> float:
    return float((x_BTD.square().sum(-1) * counts_BT.reshape(x_BTD.shape[:-1])).sum())


def _outputs(model: Any, blocks: Sequence[Block], batch: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """What each block returned in a forward of `batch`, float32 on the CPU, call by call."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_kept(block.module, found.setdefault(block.name, [])))
        model(**to_device(dict(batch), model), use_cache=False)
    return found


@contextmanager
def _kept(module: nn.Module, into: list[Tensor]) -> Iterator[None]:
    def keep(_: nn.Module, args: Any, output: Any) -> None:
        into.append((output[0] if isinstance(output, tuple) else output).float().cpu())

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()
