"""What every source gives, one picture after the other: where it is, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ressa.data.images import shown
from ressa.data.parse import well_formed
from ressa.errors import RessaError

# ("file", name, other name...) below the folders or in the zips of --images, ("url", address),
# ("tar", path, offset, size), or ("row", number) of a table.
Place: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Said:
    """A caption, or a question with its answers."""

    text: str  # the caption, or the answer
    question: str | None = None
    id: str | None = None
    kind: str | None = None
    others: tuple[str, ...] = ()  # what other people answered


@dataclass(frozen=True)
class Item:
    """A picture and what is said of it; `picture` is its name in the source, the same wherever it comes again."""

    picture: str
    place: Place
    said: tuple[Said, ...]
    where: str
    split: str | None = None  # the publisher's, if there is one


@dataclass(frozen=True)
class Skip:
    """A record of the source that is sound but of no use here."""

    reason: str
    where: str


def text(raw: Mapping[str, Any], key: str, where: str) -> str:
    """A text, which may be blank. Raises RessaError if the field is missing or no text."""
    value = field(raw, key, where)
    if not isinstance(value, str):
        raise RessaError(f'{where}: field "{key}" must be a text, not {shown(value)}')
    return well_formed(value).strip()


def number_or_text(raw: Mapping[str, Any], key: str, where: str) -> str:
    """An identifier. Raises RessaError if the field is missing, blank or anything but a text or a whole number."""
    value = field(raw, key, where)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise RessaError(f'{where}: field "{key}" must be a number or a text, not {shown(value)}')
    return well_formed(str(value)).strip()


def objects(raw: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    """A list of objects. Raises RessaError if the field is missing or anything else."""
    value = field(raw, key, where)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise RessaError(f'{where}: field "{key}" must be a list of objects, not {shown(value)}')
    return value


def field(raw: Mapping[str, Any], key: str, where: str) -> Any:
    """What the field holds. Raises RessaError if it is missing or null."""
    if raw.get(key) is None:
        raise RessaError(f'{where}: field "{key}" is missing')
    return raw[key]
