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
        return (hidden_BTD[positions_BT.to(hidden_BTD.device)], *rest)

    owner: Any = getattr(model, "module", model)  # as torch wraps a model it distributes
    handle = owner.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        logits_NV = model(**inputs, use_cache=False, return_dict=True).logits
    finally:
        handle.remove()
    if entered != 1:
        raise RuntimeError(f"{type(model).__name__} entered its output head {entered} times in one forward")
    return logits_NV


def answer_cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Mean over the tokens that are not IGNORE, float32; 0 when there is none."""
    answers = (targets_N != IGNORE).sum().clamp(min=1)
    return cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORE, reduction="sum") / answers


def answer_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, mean over the N tokens, float32, nats.

    T^2 keeps the size of the gradient when T changes (Hinton et al. 2015, section 2.1).
    """
    return temperature**2 * _kl_sum(student_NV, teacher_NV, temperature) / max(1, student_NV.shape[0])


def paper_kl(student_NV: Tensor, teacher_NV: Tensor, batch: int, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) as RESSA released it: summed over all N = B * T positions, divided by B, no T^2."""
    return _kl_sum(student_NV, teacher_NV, temperature) / batch


def _kl_sum(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
    student_NV = log_softmax(student_NV.float() / temperature, dim=-1)
    teacher_NV = log_softmax(teacher_NV.float() / temperature, dim=-1)
    return kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)


def adaptation_loss(
    student_NV: Tensor, teacher_NV: Tensor | None, targets_N: Tensor, *, kl_weight: float, kl: Any
) -> Tensor:
    """``(1 - kl_weight) * CE + kl_weight * kl(student, teacher)``; without a teacher the CE term alone counts."""
    loss = (1 - kl_weight) * answer_cross_entropy(student_NV, targets_N)
    return loss if teacher_NV is None else loss + kl_weight * kl(student_NV, teacher_NV)
