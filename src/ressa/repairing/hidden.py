"""Hidden-state distillation: every block of the student is to say what the dense block says, at every token.

The answer tokens alone are few; this asks something of each token of each block (SquareHead, Kurtic et al. 2023,
arXiv 2310.06927, equation 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ressa.calibration.outputs import squared_error
from ressa.calibration.tokens import token_weights
from ressa.model.structure import Block, structure

Outputs = Mapping[str, Sequence[Tensor]]  # what `calibration.outputs.outputs_of` captures
Share = Callable[[Tensor], Tensor]


def hidden_loss(
    ours: Outputs,
    theirs: Outputs,
    blocks: Sequence[Block],
    batch: Mapping[str, Any],
    config: Any,
    share: Share = lambda sizes: sizes,
) -> Tensor:
    """The mean over `blocks` of |student - teacher|² / |teacher|², over the tokens that count, float32.

    Args:
        ours, theirs: what the blocks of student and teacher returned when both ran `batch`.
        config: the model's.
        share: |teacher|² of every block -> its mean over all processes, each with a batch of its own: with it the mean
            of their losses is the loss of all their batches together.
    """
    weights = token_weights(batch, config)
    fars, sizes = [], []
    for block in blocks:
        pairs = [
            squared_error(y, reference.to(y.device), weights, block)
            for y, reference in zip(ours[block.name], theirs[block.name], strict=True)
        ]
        fars.append(torch.stack([far for far, _ in pairs]).sum() if pairs else None)
        sizes.append(torch.stack([size for _, size in pairs]).sum() if pairs else None)
    empty = next((size.new_zeros(()) for size in sizes if size is not None), torch.zeros(()))
    size_N = share(torch.stack([empty if size is None else size for size in sizes]))
    far_N = torch.stack([empty if far is None else far for far in fars])
    there = size_N > 0
    return (far_N[there] / size_N[there]).sum() / there.sum().clamp(min=1)


def distilled_blocks(model: PreTrainedModel) -> list[Block]:
    """The blocks of vision and language: those whose outputs are distilled."""
    plan = structure(model)
    return plan.blocks(part for part in ("vision", "language") if part in plan.parts)


def connector_end(model: PreTrainedModel) -> list[Block]:
    """The last module between vision and language, whose output is what the language model sees; none without one."""
    plan = structure(model)
    return plan.blocks(("connector",))[-1:] if "connector" in plan.parts else []
