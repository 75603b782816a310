"""What is trained for: the losses of a batch on logits, so many positions at a time, and what distances weigh.

Shapes: B records, T tokens, N positions of the whole batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ressa.calibration.logits import forced
from ressa.costs.repairing import CHUNK
from ressa.data.prompts import IGNORED
from ressa.model.structure import Block
from ressa.repairing.distill import answer_cross_entropy, answer_kl, paper_kl, top_kl
from ressa.repairing.hidden import Distances
from ressa.repairing.teacher import TeacherOutput


@dataclass(frozen=True)
class Objective:
    """The losses on logits, and how labels are read; `decoder_token_ids` are (start, pad) of an encoder-decoder.

    `(1 - kl_weight) * CE + kl_weight * KL`, or with `paper` the KL as RESSA released it, over all positions; and what
    `distances` weigh.
    """

    kl_weight: float
    temperature: float
    paper: bool
    decoder_token_ids: tuple[int, int] | None
    distances: Distances = ()

    @property
    def blocks(self) -> list[Block]:
        """Those whose outputs the distances are of."""
        return [block for _, blocks in self.distances for block in blocks]

    def asking(self, batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """A batch with `labels` -> what the forward takes, and the positions whose logits count, (B, T)."""
        inputs, targets_BT = forced(batch, self.decoder_token_ids)
        return inputs, torch.ones_like(targets_BT, dtype=torch.bool) if self.paper else targets_BT != IGNORED

    def loss(
        self,
        student_NV: Tensor,
        dense: TeacherOutput,
        batch: dict[str, Any],
        positions_BT: Tensor,
        count: Any = None,
    ) -> Tensor:
        """`count` is what token sums are divided by instead of the number of this batch's answer tokens.

        It is a sum over the positions, CHUNK logits at a time, and what the losses make of them is computed again in
        the backward: it is in memory for one chunk.
        """
        targets_N = forced(batch, self.decoder_token_ids)[1][positions_BT]
        answers = (targets_N != IGNORED).sum().clamp(min=1) if count is None else count
        given = [student_NV, targets_N, *dense.words]
        terms = partial(self._terms, answers, len(positions_BT))
        rows = max(1, CHUNK // student_NV.shape[-1])
        if len(student_NV) <= rows:
            return terms(*given)
        chunks = zip(*(x.split(rows) for x in given), strict=True)
        return torch.stack([cast(Tensor, checkpoint(terms, *chunk, use_reentrant=False)) for chunk in chunks]).sum()

    def _terms(self, answers: Any, batch: int, student_NV: Tensor, targets_N: Tensor, *dense: Tensor) -> Tensor:
        """The losses of some positions; `dense` is what `TeacherOutput.words` has of them."""
        loss = (1 - self.kl_weight) * answer_cross_entropy(student_NV, targets_N, answers)
        if not self.kl_weight:
            return loss
        if len(dense) > 1:
            kl = top_kl(student_NV, dense[0], dense[1], self.temperature, answers)
        elif self.paper:
            kl = paper_kl(student_NV, dense[0], batch, self.temperature)
        else:
            kl = answer_kl(student_NV, dense[0], self.temperature, answers)
        return loss + self.kl_weight * kl
