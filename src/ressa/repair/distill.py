"""Cross-modality adaptation: the losses that pull a pruned model back to its dense original.

    loss = (1 - a) * CE(answer) + a * T^2 * KL(dense || sparse)

on the answer tokens only, averaged over tokens, in float32. RESSA (arXiv 2404.02424) has the same two terms; its
released code sums the KL over every position, prompt and padding too, divides by the batch and leaves T^2 out:
`paper_kl`.

Shapes: B batch, T tokens (of the decoder), N chosen positions of the whole batch, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ressa.calibration.tokens import JOINED

IGNORE = -100  # label of a position that is not an answer token; transformers' own convention


def targets(labels_BT: Tensor, *, encoder_decoder: bool) -> Tensor:
    """The token that the logits at each position must predict, IGNORE where that is no answer token, (B, T).

    The labels of a decoder-only model stand beside its inputs, so the logits at t answer for the label at t + 1; those
    of an encoder-decoder are its outputs already.

    >>> targets(torch.tensor([[-100, -100, 7, 8]]), encoder_decoder=False).tolist()
    [[-100, 7, 8, -100]]
    """
    if encoder_decoder:
        return labels_BT
    return torch.cat([labels_BT[:, 1:], torch.full_like(labels_BT[:, :1], IGNORE)], dim=1)


def decoder_inputs(labels_BT: Tensor, start: int, pad: int) -> Tensor:
    """What an encoder-decoder reads while it writes the labels: the start token, then all labels but the last.

    >>> decoder_inputs(torch.tensor([[7, 8, -100]]), start=0, pad=0).tolist()
    [[0, 7, 8]]
    """
    shifted = torch.cat([torch.full_like(labels_BT[:, :1], start), labels_BT[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE, pad)


def logits_at(model: nn.Module, inputs: dict[str, Any], positions_BT: Tensor) -> Tensor:
    """Logits of `model(**inputs)` at the true positions, batch by batch in order, (N, V).

    The positions are picked in front of the output head, in every architecture: a full (B, T, V) of logits is by far
    the largest tensor of a step, and most of it would be prompt.

    Raises:
        RuntimeError: the head was not entered exactly once with one hidden state for each position.
    """
    entered = 0

    def pick(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal entered
        entered += 1
        hidden_BTD, *rest = args
        chosen_BT = positions_BT.to(hidden_BTD.device)
        if in_front:
            chosen_BT = nn.functional.pad(chosen_BT, (hidden_BTD.shape[1] - chosen_BT.shape[1], 0))
        # as one sequence: some models go on to index their logits by batch and position
        return (hidden_BTD[chosen_BT][None], *rest)

    owner: Any = getattr(model, "module", model)  # as torch wraps a model it distributes
    in_front = JOINED.get(owner.config.model_type) == "before"
    if owner.get_output_embeddings() is None:  # BLIP keeps its head within its decoder and does not name it
        return model(**inputs, use_cache=False, return_dict=True).logits[positions_BT]
    handle = owner.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        logits_1NV = model(**inputs, use_cache=False, return_dict=True).logits
    finally:
        handle.remove()
    if entered != 1:
        raise RuntimeError(f"{type(model).__name__} entered its output head {entered} times in one forward")
    return logits_1NV.squeeze(0)


def answer_cross_entropy(logits_NV: Tensor, targets_N: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Sum over the tokens that are not IGNORE, divided by `count` (default: their number), float32; 0 without any."""
    answers = (targets_N != IGNORE).sum().clamp(min=1) if count is None else count
    return cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORE, reduction="sum") / answers


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
    log_q_NV = log_softmax(student_NV.float() / temperature, dim=-1)
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
    student_NV = log_softmax(student_NV.float() / temperature, dim=-1)
    teacher_NV = log_softmax(teacher_NV.float() / temperature, dim=-1)
    return kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
