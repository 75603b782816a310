"""Whether the prompt of a record holds the tokens of its picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ressa.data.images import shown
from ressa.data.records import Record
from ressa.errors import RessaError


def picture_tokens(config: Any) -> set[int]:
    """The ids that stand for pictures in a prompt, as the model knows them; none in families that show none."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return {number for number in ids if isinstance(number, int)}


def check_placed(processor: Any, records: Sequence[Record], rows: list[list[int]], config: Any) -> None:
    """Raises RessaError for a record whose picture has no token in its prompt, though this model's pictures have some.

    They have where the processor knows the model's own token, or where another record of the batch holds it.

    Args:
        rows: the ids of each record's prompt.
    """
    known = picture_tokens(config)
    placed = [bool(known & set(ids)) for ids in rows]
    token = getattr(processor, "image_token", None)
    theirs = processor.tokenizer.convert_tokens_to_ids(str(token)) if token is not None else None
    for record, there in zip(records, placed, strict=True):
        if record.image is not None and not there and known and (theirs in known or any(placed)):
            raise RessaError(
                f"record {shown(record.id)}: its picture has no token in the prompt, the model would not see it; "
                + _unplaced(processor)
            )


def _unplaced(processor: Any) -> str:
    if getattr(processor, "num_query_tokens", 0) is None:
        return "set num_query_tokens in processor_config.json"
    return "its chat template must write a placeholder for a content part of type image"
