"""Calibration samples: a seeded subset of a dataset as padded batches, answers included."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from ressa.data.prompts import encode, shortest_first
from ressa.data.records import Record, read_records
from ressa.data.shares import shares_of
from ressa.errors import RessaError


def samples(
    source: str | Path | Any,
    processor: Any,
    config: Any,
    n: int = 128,
    *,
    batch_size: int = 8,
    seed: int = 0,
    split: str = "train",
    mine: slice = slice(None),
) -> list[dict[str, torch.Tensor]]:
    """At most `n` records of `source`, drawn by `seed`, as teacher-forced batches (see `data.prompts.encode`).

    The records are sorted by length before they are batched, so that little is padding. Which records are drawn depends
    on the seed and the number of records alone, not on the model or the batch size.

    Args:
        source: what `read_records` reads, or a list of records.
        mine: which of the batches are made.

    Raises:
        RessaError: `n` or `batch_size` below 1, and whatever is wrong with the data.
    """
    if n < 1 or batch_size < 1:
        raise RessaError(f"samples ({n}) and batch size ({batch_size}) must be at least 1")
    records: list[Record] = source if isinstance(source, list) else read_records(source, split)
    chosen = drawn(records, n, seed)
    ordered = [chosen[i] for i in shortest_first(processor, chosen, answers=True)]
    starts = range(0, len(ordered), batch_size)[mine]
    return [encode(processor, ordered[i : i + batch_size], config, answers=True) for i in starts]


def drawn(records: list[Record], n: int | None, seed: int) -> list[Record]:
    """At most `n` of the records, drawn by `seed`; all of them, in their order, for None."""
    return records if n is None else random.Random(seed).sample(records, min(n, len(records)))


def mixture(
    source: str | Path | Any, split: str, n: int | None, seed: int, *, unlabelled: bool = False
) -> list[Record]:
    """At most `n` records of a split, drawn by `seed`; of several with shares ("train:3+train_captions:1") of each its
    share, as many as there are for None.

    Raises:
        RessaError: a share that is no number above 0, or a split that has fewer records than its share of `n`.
    """
    if ":" not in split:
        return drawn(read_records(source, split, unlabelled=unlabelled), n, seed)
    shares = shares_of(split)
    found = {name: read_records(source, name, unlabelled=unlabelled) for name in shares}
    most = int(min(len(records) / shares[name] for name, records in found.items()))
    wanted, records = most if n is None else n, list[Record]()
    for i, (name, share) in enumerate(shares.items()):
        last = i == len(shares) - 1
        count = wanted - len(records) if last else round(wanted * share)
        if count > len(found[name]):
            raise RessaError(f"split {split}: {name} has {len(found[name])} records, of {count} that are its share")
        records += drawn(found[name], count, seed)
    return records
