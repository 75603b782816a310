"""Image-text retrieval: every picture with every caption, scored, then ranked both ways."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ressa.answering.cache import resumed
from ressa.answering.generate import keys_of
from ressa.data.prompts import shortest_first
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.evaluation import matching
from ressa.evaluation.choose import likelihood
from ressa.settings import Progress

LIKELIHOOD = {"retrieval": "log-probability of the caption given the picture, mean over its tokens"}


def ranks(
    model: Any,
    processor: Any,
    pictures: Sequence[Record],
    cache: Path | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[int]:
    """For each picture, then for each caption of each picture: the rank, from 1, of the first right item.

    A generative model scores a caption by its likelihood given the picture, per token (so that short captions have no
    advantage); a model with a head for it (BLIP-2's) by image-text matching, see `matching.py`. `cache` gets each
    picture's scores as they come.

    Args:
        pictures: records with a picture each and their captions as `answers`.

    Raises:
        RessaError: a model that sees no pictures.
    """
    if not hasattr(processor, "image_processor"):
        raise RessaError("a text-only model cannot tell which picture a caption describes")
    captions = [caption for record in pictures for caption in record.answers]
    score = matching.scorer(model, processor, pictures, captions, batch_size) if matching.fits(model) else None

    def ask(batch: list[int]) -> list[str]:
        rows = [score(i) if score else _likelihoods(model, processor, pictures[i], captions, batch_size) for i in batch]
        return [json.dumps([round(value, 5) for value in row]) for row in rows]

    ids, settings = [record.id for record in pictures], [settings_of(model), captions]
    keys = keys_of(model, processor, pictures, settings) if cache else ids
    rows = resumed(ids, keys, lambda todo: todo, ask, cache, 1, progress)
    scores_PC = np.array([json.loads(row) for row in rows])
    return ranked(scores_PC, [i for i, record in enumerate(pictures) for _ in record.answers])


def settings_of(model: Any) -> dict[str, Any]:
    """How pairs are scored."""
    return matching.SETTINGS if matching.fits(model) else LIKELIHOOD


def ranked(scores_PC: np.ndarray, owner_C: Sequence[int]) -> list[int]:
    """Ranks of the first right caption of each picture, then of the right picture of each caption.

    Of equal scores the wrong ones are counted before the right one, so a model that cannot tell gains nothing.
    """
    owners_C = np.array(owner_C)
    found = []
    for picture, row_C in enumerate(scores_PC):
        right = row_C[owners_C == picture].max()
        found.append(1 + int((row_C[owners_C != picture] >= right).sum()))
    for caption, owner in enumerate(owners_C):
        column_P = scores_PC[:, caption]
        found.append(int((column_P >= column_P[owner]).sum()))
    return found


def _likelihoods(model: Any, processor: Any, picture: Record, captions: Sequence[str], batch_size: int) -> list[float]:
    records = [replace(picture, answers=(caption,), caption=caption) for caption in captions]
    order, found = shortest_first(processor, records, answers=True), [0.0] * len(records)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for i, value in zip(chunk, likelihood(model, processor, [records[i] for i in chunk], mean=True), strict=True):
            found[i] = value
    return found
