"""Fields of records, read with errors that name the place and the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ressa.data.parse import well_formed
from ressa.errors import RessaError, shown

KINDS = {str: "a text", int: "a whole number", list: "a list"}
DEEPEST = 9  # levels of lists and objects that are looked into


def an_object(raw: Any, where: str) -> Mapping[str, Any]:
    """`raw`, which is an object. Raises RessaError for anything else."""
    if not isinstance(raw, Mapping):
        raise RessaError(f"{where}: must be an object in braces, not {shown(raw)}")
    return raw


def need(raw: Mapping[str, Any], key: str, kind: type, where: str, *, blank: bool = False) -> Any:
    """A field of that kind (of `KINDS`), a text without surrounding space.

    Args:
        blank: whether it may be empty.

    Raises:
        RessaError: the field is missing, empty or of another kind.
    """
    value = raw.get(key)
    if value is None or (not blank and value in ("", [])):
        raise RessaError(f'{where}: field "{key}" is missing{"" if blank else " or empty"}')
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RessaError(f'{where}: field "{key}" must be {KINDS[kind]}, not {shown(value)}')
    return well_formed(value).strip() if isinstance(value, str) else value


def text(raw: Mapping[str, Any], key: str, where: str) -> str:
    """A text, which may be empty. Raises as `need`."""
    return str(need(raw, key, str, where, blank=True))


def identifier(raw: Mapping[str, Any], key: str, where: str) -> str:
    """A text or a whole number, as text. Raises RessaError if the field is missing, blank or anything else."""
    value = raw.get(key)
    if value is None:
        raise RessaError(f'{where}: field "{key}" is missing')
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise RessaError(f'{where}: field "{key}" must be a number or a text, not {shown(value)}')
    return well_formed(str(value)).strip()


def objects(raw: Mapping[str, Any], key: str, where: str) -> list[tuple[Mapping[str, Any], str]]:
    """(object, place) of each in a list, which may be empty. Raises RessaError for anything but a list of objects."""
    entries = need(raw, key, list, where, blank=True)
    return [(an_object(entry, f"{where}: {key}[{i}]"), f"{where}: {key}[{i}]") for i, entry in enumerate(entries)]


def texts(raw: Mapping[str, Any], key: str, where: str, inner: str = "") -> tuple[str, ...]:
    """A list of texts, or with `inner` of objects whose field `inner` is a text; empty ones are kept as they are."""
    found = []
    for i, item in enumerate(need(raw, key, list, where)):
        value = item.get(inner) if inner and isinstance(item, Mapping) else item
        if not isinstance(value, str):
            raise RessaError(f'{where}: field "{key}[{i}]{"." + inner if inner else ""}" must be a text')
        found.append(value)
    return tuple(found)


def optional_text(raw: Mapping[str, Any], key: str, where: str) -> str | None:
    """A text as it stands, None if it is missing. Raises RessaError for a blank one and for anything else."""
    value = raw.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise RessaError(f'{where}: field "{key}" must be a text that is not empty, not {shown(value)}')
    return value


def scalar(raw: Mapping[str, Any], key: str, where: str) -> str | None:
    """A text or a number (as text); None when it is missing or blank."""
    value = raw.get(key)
    found = "" if value is None else as_text(value)
    if found is None:
        raise RessaError(f'{where}: field "{key}" must be a text or a number, not {shown(value)}')
    return found or None


def as_text(value: object) -> str | None:
    """A text or a number as text; "" for NaN, which is a table's null; None for anything else.

    >>> as_text(2.0), as_text(0.5), as_text(float("nan")), as_text(True)  # tables with nulls keep whole numbers so
    ('2', '0.5', '', None)
    """
    if isinstance(value, float):
        if math.isinf(value):
            return None
        value = "" if math.isnan(value) else int(value) if value.is_integer() and abs(value) < 2**53 else value
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def texts_in(value: Any) -> list[str] | None:
    """The texts of a text, or of a list of texts or of {"answer": text} as in VQAv2; None if there are others."""
    if isinstance(value, Mapping):  # of `datasets`, which turned lists of objects inside out
        value = value.get("answer", value.get("text"))
    entries = value if isinstance(value, list | tuple) else [value]
    texts = [as_text(entry.get("answer") if isinstance(entry, Mapping) else entry) for entry in entries]
    return [text for text in texts if text is not None] if texts and None not in texts else None


def empty(value: Any, depth: int = 0) -> bool:
    """Whether a field says nothing: null, NaN (a table's null), no, zero, and lists and objects of nothing else."""
    if isinstance(value, list | tuple | Mapping):
        inner = value.values() if isinstance(value, Mapping) else value
        return depth < DEEPEST and all(empty(entry, depth + 1) for entry in inner)
    return value is None or (isinstance(value, int | float) and (not value or value != value))


def one(value: Any, key: str, where: str) -> Any:
    """The value, or the only one in a list. Raises RessaError if there are several."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) > 1:
        raise RessaError(f'{where}: field "{key}" must hold exactly one picture, not {len(value)}')
    return value[0] if value else None
