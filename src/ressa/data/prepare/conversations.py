"""Conversations about pictures in the format of LLaVA (Liu et al. 2023): llava-mix and sharegpt4v.

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat are the colours of the bus?"},
                        {"from": "gpt", "value": "White and red."}, ...]}, ...]

llava_v1_5_mix665k.json and all files of ShareGPT4V (Chen et al. 2023) have it. Each question with its answer becomes a
record of its own, without those before it: a record is one question and one answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ressa.data.images import shown
from ressa.data.prepare.items import Item, Said, Skip, number_or_text, objects, text
from ressa.data.prepare.stream import entries
from ressa.errors import RessaError

PLACEHOLDER = "<image>"


def conversations(source: Path) -> Iterator[Item | Skip]:
    """A picture with the turns of one conversation. Raises RessaError for what is not in the format above."""
    for raw, where in entries(source, "item", 'a list of {"image": ..., "conversations": [...]} objects'):
        turns = objects(raw, "conversations", where)
        if raw.get("image") is None:
            yield Skip("without a picture", where)
            continue
        name = text(raw, "image", where)
        ident = number_or_text(raw, "id", where) if "id" in raw else None
        said = _pairs(turns, ident, where)
        if said is None:
            yield Skip("turns out of order", where)
        else:
            yield Item(name, ("file", name), said, where)


def _pairs(turns: list[Mapping[str, Any]], ident: str | None, where: str) -> tuple[Said, ...] | None:
    """Questions with their answers; None where human and model do not take turns."""
    speakers, told = [], []
    for n, turn in enumerate(turns, 1):
        at = f"{where}: turn {n}"
        speaker = text(turn, "from", at)
        if speaker not in ("human", "gpt"):
            raise RessaError(f'{at}: field "from" must be human or gpt, not {shown(speaker)}')
        speakers.append(speaker)
        told.append(text(turn, "value", at).replace(PLACEHOLDER, "").strip())
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        return None
    pairs = zip(told[::2], told[1::2], strict=True)
    return tuple(Said(answer, question, ident and f"{ident}-{n}") for n, (question, answer) in enumerate(pairs, 1))
