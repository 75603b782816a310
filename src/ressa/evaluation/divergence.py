"""Next-token distributions on the reference answers of held-out records: how sure the model is of them (perplexity),
and how far it is from the dense model (KL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from ressa import parallel
from ressa.answering.generate import eval_mode
from ressa.calibration.logits import decoder_token_ids, forced, logits_at
from ressa.data.prompts import IGNORED, encode, shortest_first, to_device
from ressa.data.records import Record
from ressa.settings import Progress


def answer_sums(
    model: torch.nn.Module,
    dense: torch.nn.Module | None,
    processor: Any,
    records: Sequence[Record],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[tuple[float, float, float, int]]:
    """For each record, over the tokens of its reference answer (end token included): the sums of KL(dense || model),
    of the model's and of the dense model's negative log-likelihood, in nats (0 without `dense`), and their number.
    Both models, which share a vocabulary, read the same teacher-forced batch; sums are float32.
    """
    order = shortest_first(processor, records, answers=True)
    batches = parallel.shard([order[i : i + batch_size] for i in range(0, len(order), batch_size)])
    found: dict[str, tuple[float, float, float, int]] = {}
    for chunk in batches:
        if progress:
            progress(min(len(found) * parallel.world_size(), len(order)), len(order), "comparing")
        batch = encode(processor, [records[i] for i in chunk], getattr(model, "config", None), answers=True)
        for i, sums in zip(chunk, _batch_sums(model, dense, batch), strict=True):
            found[str(i)] = sums
    found = parallel.all_gather(found)
    if progress:
        progress(len(order), len(order), "comparing")
    return [found[str(i)] for i in range(len(records))]


def _batch_sums(model: Any, dense: Any | None, batch: dict[str, torch.Tensor]) -> list[tuple[float, float, float, int]]:
    with eval_mode(model):
        logp_NV, labels_N, counts = answer_log_probs(model, batch)
    nll_N = -logp_NV.gather(1, labels_N[:, None]).squeeze(1)
    kl_N = theirs_N = torch.zeros_like(nll_N)
    if dense is not None:
        with eval_mode(dense):
            reference_NV, labels_N, _ = answer_log_probs(dense, batch)
        theirs_N = -reference_NV.gather(1, labels_N[:, None]).squeeze(1)
        kl_N = F.kl_div(logp_NV, reference_NV.to(logp_NV.device), reduction="none", log_target=True).sum(-1)
    parts = zip(*(x_N.split(counts) for x_N in (kl_N, nll_N, theirs_N)), strict=True)
    return [(float(kl.sum()), float(nll.sum()), float(theirs.sum()), len(kl)) for kl, nll, theirs in parts]


def answer_log_probs(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Log-probabilities (N, V) at the N positions that predict an answer token, those tokens (N), and their number for
    each row of the batch."""
    inputs, targets_BT = forced(to_device(batch, model), decoder_token_ids(model.config))
    mask_BT = targets_BT != IGNORED
    logits_NV = logits_at(model, inputs, mask_BT)
    return logits_NV.float().log_softmax(-1), targets_BT[mask_BT], mask_BT.sum(1).tolist()
