"""Hidden-state distillation: every block of the student is to say what the dense block says, at every token.

The answer tokens alone are few; this asks something of each token of each block (SquareHead, Kurtic et al. 2023,
arXiv 2310.06927, equation 2). Shapes: B batch, T tokens, D width of a block's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ressa.calibration.tokens import TokenWeights, token_weights
from ressa.model.structure import Block, structure


class HiddenStates:
    """Listens to the blocks of vision and language in student and teacher; `loss` tells how far they came apart."""

    def __init__(self, student: PreTrainedModel, teacher: nn.Module) -> None:
        self.config = student.config
        self.blocks = structure(student).blocks(("vision", "language"))
        self.ours: dict[str, list[Tensor]] = {block.name: [] for block in self.blocks}
        self.theirs: dict[str, list[Tensor]] = {block.name: [] for block in self.blocks}
        for block in self.blocks:
            block.module.register_forward_hook(_keeper(self.ours[block.name]))
            teacher.get_submodule(block.name).register_forward_hook(_keeper(self.theirs[block.name]))

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The mean over blocks of |student - teacher|² / |teacher|², over the tokens that count, float32.

        Empties what was heard: call it once after both have run `batch`.
        """
        weights = token_weights(batch, self.config)
        found = [
            _relative(ours, theirs, weights, block)
            for block in self.blocks
            for ours, theirs in zip(self.ours[block.name], self.theirs[block.name], strict=True)
        ]
        for kept in (*self.ours.values(), *self.theirs.values()):
            kept.clear()
        return torch.stack(found).mean()


def _keeper(into: list[Tensor]) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        into.append(output[0] if isinstance(output, tuple) else output)

    return keep


def _relative(ours: Tensor, theirs: Tensor, weights: TokenWeights, block: Block) -> Tensor:
    ours, theirs = ours.float(), theirs.float()
    counts_BT = weights.of(block, block.name, theirs, crossed=False)
    far_BT, size_BT = (ours - theirs).square().sum(-1), theirs.square().sum(-1)
    if counts_BT is not None:
        far_BT, size_BT = far_BT * counts_BT, size_BT * counts_BT
    return far_BT.sum() / size_BT.sum().clamp(min=torch.finfo(torch.float32).tiny)
