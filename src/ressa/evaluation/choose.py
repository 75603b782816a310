"""Which of several texts a model finds likeliest as its answer: multiple choice without reading what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ressa.answering.cache import resumed
from ressa.answering.generate import by_length, eval_mode, keys_of, tie
from ressa.data.prompts import encode
from ressa.data.records import Record
from ressa.evaluation.divergence import answer_log_probs
from ressa.settings import Progress

LOGITS = 8.0  # about the size of a logit: what is rounded
SETTINGS = {"choices": "likelihood", "score": "sum of log-probabilities, end token included"}


def choices(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    candidates: Sequence[tuple[str, ...]],
    cache: Path | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, str]:
    """For each record, by id, the candidate whose tokens (end token included) are likeliest after its prompt.

    The score is the sum of log-probabilities, as in InstructBLIP's vocabulary ranking (Dai et al. 2023, section 3.2);
    of equals the first wins. Candidates that rounding could exchange are scored again one by one, so the choice does
    not depend on the batch.
    """

    def ask(batch: list[int]) -> list[str]:
        pairs = [_answered(records[i], text) for i in batch for text in candidates[i]]
        scores = [s for k in range(0, len(pairs), size) for s in likelihood(model, processor, pairs[k : k + size])]
        best, start = [], 0
        for i in batch:
            mine = scores[start : start + len(candidates[i])]
            start += len(candidates[i])
            best.append(candidates[i][_best(model, processor, records[i], candidates[i], mine)])
        return best

    size = max(batch_size, 1)
    ids, in_batch = [record.id for record in records], max(1, size // max(map(len, candidates), default=1))
    keys = keys_of(model, processor, records, SETTINGS, candidates) if cache else ids
    found = resumed(ids, keys, by_length(processor, records), ask, cache, in_batch, progress)
    return dict(zip(ids, found, strict=True))


def likelihood(model: Any, processor: Any, records: Sequence[Record], mean: bool = False) -> list[float]:
    """The log-probability of each record's target after its prompt, end token included, in nats; summed over its
    tokens, or their mean."""
    batch = encode(processor, records, model.config, answers=True)
    with eval_mode(model):
        logp_NV, labels_N, counts = answer_log_probs(model, batch)
        answer_N = logp_NV.gather(1, labels_N[:, None]).squeeze(1)
    parts = answer_N.split(counts)
    return [float(part.sum(dtype=torch.float64)) / (len(part) if mean else 1) for part in parts]


def _answered(record: Record, text: str) -> Record:
    return replace(record, answers=(text,), question=record.question)


def _best(model: Any, processor: Any, record: Record, texts: Sequence[str], scores: list[float]) -> int:
    best, second = sorted(scores, reverse=True)[:2] if len(scores) > 1 else (scores[0], float("-inf"))
    if best - second < tie(next(model.parameters()).dtype) * max(abs(best), LOGITS):
        scores = [likelihood(model, processor, [_answered(record, text)])[0] for text in texts]
    return max(range(len(scores)), key=scores.__getitem__)
