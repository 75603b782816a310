"""Conversations about pictures in the format of LLaVA (Liu et al. 2023): llava-mix and sharegpt4v.

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat are the colours of the bus?"},
                        {"from": "gpt", "value": "White and red."}, ...]}, ...]

llava_v1_5_mix665k.json and all files of ShareGPT4V (Chen et al. 2023) have it; so have many others with one object a
line, `messages` or `role` and `content` (`ressa.data.chats`), or a picture in a list. Each question with its answer
becomes a record of its own, without those before it: a record is one question and one answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ressa.data.chats import Exchange, beside, exchanges, turns
from ressa.data.fields import empty, identifier, objects, text
from ressa.data.items import Annotation, Item, Skip
from ressa.data.media import FILM, MARK, OTHER_MEDIA
from ressa.data.stream import entries, first_sign, json_lines

SEVERAL, FILMED, DISORDER = "several pictures", "a film or a sound", "turns out of order"


def conversations(source: Path) -> Iterator[Item | Skip]:
    """A picture with the turns of one conversation. Raises RessaError for what is not in the format above."""
    form = 'a list of {"image": ..., "conversations": [...]} objects, or one of them a line'
    rows = json_lines(source) if source.is_file() and first_sign(source) == b"{" else entries(source, "item", form)
    for raw, where in rows:
        key = "messages" if raw.get("conversations") is None and raw.get("messages") is not None else "conversations"
        chat = [*beside(raw), *turns([turn for turn, _ in objects(raw, key, where)], where)]
        pairs = exchanges(chat)
        images = _images(raw)
        if any(not empty(raw.get(media)) for media in OTHER_MEDIA) or any(FILM.search(turn.text) for turn in chat):
            yield Skip(FILMED)
        elif len(images) > 1 or sum(len(turn.images) for turn in chat) > 1:
            yield Skip(SEVERAL)
        elif pairs is None:
            yield Skip(DISORDER)
        elif not (images := images or [image for turn in chat for image in turn.images if image is not None]):
            yield Skip("without a picture")
        else:
            name = text({"image": images[0]}, "image", where)
            yield Item(name, ("file", name), _annotations(pairs, raw, where), where)


def _images(raw: Mapping[str, Any]) -> list[Any]:
    """What `image` or `images` names, which may be a list of one."""
    value = raw.get("image") if not empty(raw.get("image")) else raw.get("images")
    listed = value if isinstance(value, list) else [value]
    return [image for image in listed if not empty(image) and image != ""]


def _annotations(pairs: list[Exchange], raw: Mapping[str, Any], where: str) -> tuple[Annotation, ...]:
    ident = None if empty(raw.get("id")) else identifier(raw, "id", where)
    plain = [(pair, MARK.sub("", pair.question).strip()) for pair in pairs]
    return tuple(
        Annotation(pair.answer.strip(), question and pair.asked(question), ident and f"{ident}-{n}")
        for n, (pair, question) in enumerate(plain, 1)
    )
