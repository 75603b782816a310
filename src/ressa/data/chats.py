"""Chats as LLaVA, ShareGPT, OpenAI and the processors of transformers write them, turn by turn.

    [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "An owl."}]
    [{"role": "user", "content": [{"type": "image", "path": "1.png"}, {"type": "text", "text": "What is it?"}]},
     {"role": "assistant", "content": "An owl."}]

A system message, in the chat or beside it ("system", "system_prompt"), is put in front of each question, as chat
templates without a system role do.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ressa.data.fields import empty, one
from ressa.data.media import NAMES, PICTURES
from ressa.errors import RessaError, shown

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
TEXTS = ("text", "input_text", "output_text")
IMAGES = ("image", "image_url", "input_image")
ADDRESSES = ("url", *PICTURES, *NAMES)  # where a part of a chat has its picture


@dataclass(frozen=True)
class Turn:
    """What one of them says; `images` are what is shown with it, None for one that lies beside the chat."""

    speaker: str
    text: str
    images: tuple[object, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, with the system message of the chat."""

    question: str
    answer: str
    system: str = ""

    def asked(self, question: str) -> str:
        """`question`, this one without the mark of a picture, behind the system message."""
        return f"{self.system}\n\n{question}".strip()


def turns(messages: Sequence[Mapping[str, Any]], where: str) -> list[Turn]:
    """Who says what. Raises RessaError for other speakers, no text, and parts that are neither text nor picture."""
    chat = []
    for n, message in enumerate(messages, 1):
        at = f"{where}: turn {n}"
        key = "from" if message.get("from") is not None else "role"
        speaker = message.get(key)
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            key = key if speaker is not None or "role" in message else "from"
            names = "user or assistant" if key == "role" else "human or gpt"
            raise RessaError(f'{at}: field "{key}" must be {names} (or system, first), not {shown(speaker)}')
        field = "value" if message.get("value") is not None else "content"
        chat.append(_turn(SPEAKERS[speaker], message.get(field), f'{at}: field "{field}"'))
    return chat


def beside(raw: Mapping[str, Any]) -> list[Turn]:
    """The system message that a record has beside its chat, if any."""
    texts = [raw[key] for key in ("system", "system_prompt") if isinstance(raw.get(key), str) and raw[key].strip()]
    return [Turn("system", text) for text in texts[:1]]


def exchanges(chat: Sequence[Turn]) -> list[Exchange] | None:
    """Questions with their answers; None where user and assistant do not take turns."""
    rest = list(itertools.dropwhile(lambda turn: turn.speaker == "system", chat))
    system = "\n\n".join(turn.text.strip() for turn in chat[: len(chat) - len(rest)])
    if not rest or [turn.speaker for turn in rest] != ["human", "gpt"] * (len(rest) // 2):
        return None
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return [Exchange(q.text, a.text, system) for q, a in pairs]


def _turn(speaker: str, content: object, what: str) -> Turn:
    if isinstance(content, str):
        return Turn(speaker, content)
    if not isinstance(content, list | tuple):
        raise RessaError(f"{what} must be a text or a list of parts, not {shown(content)}")
    texts: list[object] = []
    images: list[object] = []
    for part in content:
        kind, value = _part(part, what)
        (texts if kind == "text" else images).append(value)
    return Turn(speaker, "\n".join(str(text) for text in texts), tuple(images))


def _part(part: object, what: str) -> tuple[str, object]:
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, Mapping):
        raise RessaError(f"{what} holds {shown(part)}, which is no part of a message")
    kinds = (*TEXTS, *IMAGES)
    kind = part.get("type") or next((key for key in kinds if part.get(key) is not None), None)
    if kind not in kinds:
        raise RessaError(f"{what} has a part of type {shown(kind)}; only text and image are read")
    named = {key: part[key] for key in ADDRESSES if not empty(part.get(key))}
    if kind in TEXTS:
        if named or not isinstance(part.get("text"), str):
            raise RessaError(f'{what} has a part of type {shown(kind)} whose field "text" is not all it has')
        return "text", part["text"]
    if len(named) > 1:
        raise RessaError(f"{what} has a picture under {' and '.join(map(shown, named))}; name it once")
    for key, value in named.items():
        value = one(value, key, what)
        return "image", value["url"] if isinstance(value, Mapping) and value.get("url") is not None else value
    return "image", None
