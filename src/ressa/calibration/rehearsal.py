"""What every verb does before its first batch: does the model see the pictures, and has it room for the records?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ressa.data.lengths import check_lengths, check_words
from ressa.data.records import Record
from ressa.data.seeing import how_seen
from ressa.model.positions import embedded, longest


def rehearse(model: Any, processor: Any, records: Sequence[Record]) -> str | None:
    """How the model sees the records' pictures ("tokens", "pixels", None if there are none or it reads text only).

    Raises:
        RessaError: as `how_seen` and `check_room`.
    """
    check_room(model, processor, records)
    return how_seen(model, processor, records)


def check_room(model: Any, processor: Any, records: Sequence[Record], new_tokens: int | None = None) -> None:
    """Raises RessaError for a record with more tokens than `model` has learned places for, or with unknown ones.

    Args:
        new_tokens: how many tokens the model may write; None: the records' own answers follow their prompts.
    """
    if words := embedded(model):
        check_words(words, processor, model.config, records)
    check_lengths(longest(model), processor, model.config, records, new_tokens)
