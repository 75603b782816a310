"""How far a model's next-token distributions are from the dense model's, on the answers of held-out records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from ressa.data.prompts import IGNORED, encode, is_encoder_decoder, shortest_first, to_device
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.evaluate.generate import Progress, measuring


def answer_kl(
    model: torch.nn.Module,
    dense: torch.nn.Module,
    processor: Any,
    records: Sequence[Record],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[tuple[float, int]]:
    """For each record: the sum of KL(dense || model) over the tokens of its reference answer (end token included), in
    nats, and their number. Both models read the same teacher-forced batch; the sum is float32.

    Raises:
        RessaError: the two models do not share a vocabulary.
    """
    found: list[tuple[float, int]] = [(0.0, 0)] * len(records)
    order = shortest_first(processor, records, answers=True)
    for start in range(0, len(order), batch_size):
        if progress:
            progress(start, len(order), "comparing")
        chunk = order[start : start + batch_size]
        batch = encode(processor, [records[i] for i in chunk], getattr(model, "config", None), answers=True)
        for i, pair in zip(chunk, _batch_kl(model, dense, batch), strict=True):
            found[i] = pair
    if progress:
        progress(len(order), len(order), "comparing")
    return found


def _batch_kl(model: Any, dense: Any, batch: dict[str, torch.Tensor]) -> list[tuple[float, int]]:
    with measuring(model), measuring(dense):
        logp_NV, counts = _answer_log_probs(model, batch)
        reference_NV, _ = _answer_log_probs(dense, batch)
    if logp_NV.shape != reference_NV.shape:
        sizes = f"{logp_NV.shape[-1]} and {reference_NV.shape[-1]} words"
        raise RessaError(f"the two models have different vocabularies ({sizes}); compare a model with its own original")
    kl_N = F.kl_div(logp_NV, reference_NV.to(logp_NV.device), reduction="none", log_target=True).sum(-1)
    return [(float(part.sum()), len(part)) for part in kl_N.split(counts)]


def _answer_log_probs(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities (N, V) at the N positions that predict an answer token, and their number for each row."""
    batch = to_device(batch, model)
    labels_BT = batch["labels"]
    if is_encoder_decoder(model.config):
        logits_BTV = model(**batch).logits
    else:  # without labels, so that the model computes no loss of its own
        logits_BTV = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
        labels_BT = labels_BT[:, 1:]
    mask_BT = labels_BT != IGNORED
    return logits_BTV[mask_BT].float().log_softmax(-1), mask_BT.sum(1).tolist()
