"""Hidden-state distillation: every block of the student is to say what the dense block says, at every token.

The answer tokens alone are few; this asks something of each token of each block (SquareHead, Kurtic et al. 2023,
arXiv 2310.06927, equation 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ressa.calibration.outputs import squared_error
from ressa.calibration.tokens import token_weights
from ressa.model.matrix import Convolution
from ressa.model.structure import Block, Structure
from ressa.repairing.settings import Repair

Outputs = Mapping[str, Sequence[Tensor]]  # what `calibration.outputs.outputs_of` captures
Distances = Sequence[tuple[float, Sequence[Block]]]  # (weight in the loss, blocks)
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
    device = next((y.device for outputs in ours.values() for y in outputs), None)
    nothing = torch.zeros((), device=device), torch.zeros((), device=device)  # of a block that the batch never enters
    fars, sizes = list[Tensor](), list[Tensor]()
    for block in blocks:
        pairs = [
            squared_error(y, reference.to(y.device), weights, block)
            for y, reference in zip(ours[block.name], theirs[block.name], strict=True)
        ]
        far, size = (torch.stack(sums).sum() for sums in zip(*(pairs or [nothing]), strict=True))
        fars, sizes = [*fars, far], [*sizes, size]
    far_N, size_N = torch.stack(fars), share(torch.stack(sizes))
    there = size_N > 0
    return (far_N[there] / size_N[there]).sum() / there.sum().clamp(min=1)


def distilled_blocks(parts: Structure) -> list[Block]:
    """The blocks of vision and language: those whose outputs are distilled. Patch embeddings are not."""
    return [block for block in parts.blocks(("vision", "language")) if not isinstance(block.module, Convolution)]


def connector_end(parts: Structure) -> list[Block]:
    """The last module between vision and language, whose output is what the language model sees; none without one."""
    return parts.blocks(("connector",))[-1:]


def distances(settings: Repair, parts: Structure) -> Distances:
    """(weight, blocks) of every distance of outputs that the loss has; of complete settings."""
    found = [(settings.hidden_weight, distilled_blocks(parts)), (settings.connector_weight, connector_end(parts))]
    return [(weight, blocks) for weight, blocks in found if weight and blocks]
