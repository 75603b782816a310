"""The sums that `ressa evaluate` adds up for KL and perplexity, of models that are in memory."""

from __future__ import annotations

from ressa.evaluation.divergence import compared, kept_beside, own_sums


def answer_sums(model, dense, processor, records, batch_size=32):
    """Of each record what `compared` tells of two models, or `own_sums` of one (`dense` is None)."""
    with kept_beside(None) as folder:
        own = own_sums(model, processor, records, batch_size, None, None if dense is None else folder)
        return own if dense is None else compared(dense, model.config, processor, records, batch_size, None, folder)
