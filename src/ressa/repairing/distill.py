"""Cross-modality adaptation: the losses that pull a pruned model back to its dense original.

    loss = (1 - a) * CE(answer) + a * T^2 * KL(dense || sparse)

on the answer tokens only, averaged over tokens, in float32. RESSA (arXiv 2404.02424) has the same two terms; its
released code sums the KL over every position, prompt and padding too, divides by the batch and leaves T^2 out:
`paper_kl`.

Shapes: N chosen positions of the whole batch, V vocabulary, K of its words.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ressa.data.prompts import IGNORED
from ressa.model.precision import wide


def answer_cross_entropy(logits_NV: Tensor, targets_N: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Sum over the tokens that are not IGNORED, divided by `count` (default: their number), float32; 0 without any."""
    answers = (targets_N != IGNORED).sum().clamp(min=1) if count is None else count
    return cross_entropy(logits_NV.to(wide(logits_NV)), targets_N, ignore_index=IGNORED, reduction="sum") / answers


def answer_kl(
    student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0, count: Tensor | float | None = None
) -> Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, mean over the N tokens, float32, nats.

    T^2 keeps the size of the gradient when T changes (Hinton et al. 2015, section 2.1). The sum is divided by `count`
    if it is given: a batch may be part of a larger one.
    """
    total = _kl_sum(student_NV, teacher_NV, temperature)
    return temperature**2 * total / (max(1, student_NV.shape[0]) if count is None else count)


def top_kl(
    student_NV: Tensor, top_NK: Tensor, words_NK: Tensor, temperature: float = 1.0, count: Tensor | float | None = None
) -> Tensor:
    """`answer_kl` where of the teacher only the K likeliest words are known, and the rest as one.

    Exact for K = V, else a lower bound (the log sum inequality) that is 0 if and only if the K words and the rest have
    the same probabilities in both.

    Args:
        top_NK: log-probabilities of the teacher at `temperature`.
        words_NK: which words they are of.
    """
    log_q_NV = log_softmax(student_NV.to(wide(student_NV)) / temperature, dim=-1)
    log_q_NK = log_q_NV.gather(-1, words_NK)
    total = (top_NK.exp() * (top_NK - log_q_NK)).sum()
    if words_NK.shape[-1] < student_NV.shape[-1]:
        tiny = torch.finfo(torch.float32).tiny
        # of the student's rest the sum, not 1 minus the others: that would be rounded away
        rest_q_N = log_q_NV.scatter(-1, words_NK, -torch.inf).logsumexp(-1)
        rest_p_N = (1 - top_NK.exp().sum(-1)).clamp(min=tiny)
        total = total + (rest_p_N * (rest_p_N.log() - rest_q_N)).sum()
    return temperature**2 * total / (max(1, student_NV.shape[0]) if count is None else count)


def top_words(logits_NV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-probabilities at `temperature`, which words) of the k likeliest words, (N, K) each; what `top_kl` takes."""
    top = log_softmax(logits_NV.float() / temperature, dim=-1).topk(min(k, logits_NV.shape[-1]), dim=-1)
    return top.values, top.indices


def paper_kl(student_NV: Tensor, teacher_NV: Tensor, batch: int, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) as RESSA released it: summed over all N = B * T positions, divided by B, no T^2."""
    return _kl_sum(student_NV, teacher_NV, temperature) / batch


def _kl_sum(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
    student_NV = log_softmax(student_NV.to(wide(student_NV)) / temperature, dim=-1)
    teacher_NV = log_softmax(teacher_NV.to(wide(teacher_NV)) / temperature, dim=-1)
    return kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
