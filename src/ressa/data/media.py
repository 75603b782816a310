"""Which fields of a record hold its picture, and which look as if they did. The lists are docs/data.md's.

A model that silently sees nothing still answers, so what might be a picture is read or refused, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ressa.data.fields import empty, one
from ressa.errors import RessaError, shown

PICTURES = ("image", "images", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
NAMES = ("image_path", "img_path", "image_file", "image_url", "file_name", "filename", "path")  # of the picture's file
MAYBE = ("file_name", "filename", "path")  # or of any other file: read if they end as pictures do
OTHER_MEDIA = ("video", "videos", "video_path", "audio", "audios", "audio_path")
OWN = {"id", "kind", "question", "answer", "answers", "caption", "prefix", "text", "messages", "conversations"}
SUFFIX = re.compile(r"\.(png|jpe?g|jpe|webp|gif|bmp|tiff?|ppm|pgm|heic|avif|mp4|avi|mov|mkv|webm)$", re.IGNORECASE)
ABOUT_MEDIA = re.compile(r"image|img|pictures?(_|$)|photo|video|audio", re.IGNORECASE)
FURTHER = re.compile(r"(image|img|picture|photo)s?_?\d+")  # image_2
# <image> (LLaVA), <image 1> (MMMU), <|image_1|> (Phi-3), <ImageHere> (InternLM), <img>1.png</img> (Qwen-VL)
MARK = re.compile(r"<(?:image(?:[ _]\d+)?|\|image(?:_\d+)?\||ImageHere)>|<img>[^<]*</img>")
AT_AN_END = r"\A\s*(?:{0})|(?:{0})\s*\Z"
OUTER_MARK = re.compile(AT_AN_END.format(MARK.pattern) + r"|<img>[^<]*</img>")
FILM = re.compile(AT_AN_END.format(r"<(?:video|audio)>"))


def picture(raw: Mapping[str, Any], inline: object, where: str) -> object:
    """What stands for the picture of a record: a path, text in base64, a picture of a table; None if it has none.

    Args:
        inline: what the chat of the record has for it.

    Raises:
        RessaError: two pictures, or something that looks like a picture, a film or a sound and is not read.
    """
    found = {key: value for key in PICTURES if not empty(value := one(raw.get(key), key, where))}
    if inline is not None:
        found["messages"] = inline
    _check_alone(raw, found, where)
    for key in NAMES:
        value = raw.get(key)
        if not found and not empty(value) and (key not in MAYBE or _ends_as_media(value)):
            found[key] = one(value, key, where)
    if found:
        return next(iter(found.values()))
    for key, value in raw.items():  # a blind question is allowed, a misspelt field is not
        if key not in OWN and not empty(value) and (ABOUT_MEDIA.search(key) or _is_media(value)):
            raise RessaError(f'{where}: field {shown(key)} is not read; name the picture in "image"')
    return None


def unmarked(text: str, seen: bool, what: str) -> str:
    """A question without the placeholder of its picture, which stands where each model wants it.

    Args:
        seen: whether there is a picture; without one, a placeholder inside a text is a part of it ("the tag <image>").

    Raises:
        RessaError: a placeholder at either end and no picture, several of them, or nothing else.
    """
    if FILM.search(text):
        raise RessaError(f"{what} marks a film or a sound; only pictures are read")
    if not seen and OUTER_MARK.search(text):
        raise RessaError(f'{what} marks a picture, but the record has none; name it in "image" or remove the mark')
    if seen and (marks := len(MARK.findall(text))) > 1:
        raise RessaError(f"{what} marks {marks} pictures; a record is one image, one question, one answer")
    if not seen:
        return text
    if not (left := MARK.sub("", text).strip()):
        raise RessaError(f"{what} has no text besides the mark of its picture")
    return left


def _check_alone(raw: Mapping[str, Any], found: Mapping[str, object], where: str) -> None:
    if any(value != next(iter(found.values())) for value in found.values()):
        raise RessaError(f"{where}: fields {' and '.join(map(shown, found))} hold two pictures; a record has one")
    for key, value in raw.items():
        further = found and FURTHER.fullmatch(key.lower()) and _is_media(value)
        if (key.lower() in OTHER_MEDIA and not empty(value)) or further:
            raise RessaError(
                f"{where}: field {shown(key)} is not read; a record has one picture and nothing else to see"
            )


def _ends_as_media(value: object) -> bool:
    return isinstance(value, str) and len(value) < 4096 and SUFFIX.search(value.partition("?")[0]) is not None


def _is_media(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_media(entry) for entry in value if not isinstance(entry, str | list | tuple))
    if isinstance(value, Mapping):
        return any(key in (*PICTURES, "bytes") and not empty(entry) for key, entry in value.items())
    return hasattr(value, "open") or _ends_as_media(value)
