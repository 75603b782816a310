r"""Text of data, models and users as it may be shown: one line, and nothing in it that a terminal or a page would obey.

Escape codes can recolour, retitle and overwrite a terminal, or make it type; marks of direction turn a name around; a
line break ends a line of the log and begins another.
"""

from __future__ import annotations

import json
import re


def printable(text: object) -> str:
    r"""`text` on one line; what cannot be seen is spelled out, and the letters of every script stay as they are.

    Line breaks and odd spaces become a space; control characters, zero-width ones, marks of direction, lone surrogates
    and letters that no standard knows become \x1b, \u202e, ...

    >>> print(printable("a\x1b[31mred\nb"))
    a\x1b[31mred b
    """
    line = " ".join(str(text).splitlines())
    return line if line.isprintable() else "".join(map(_spelled, line))


def shown(value: object, limit: int = 80) -> str:
    """A value of the user's data, on one line, in quotes, at most `limit` characters long."""
    try:
        text = printable(" ".join(str(value).split()))
    except RecursionError:  # JSON of thousands of brackets
        text = f"{type(value).__name__} nested too deeply"
    return f"'{text if len(text) <= limit else text[: limit - 1] + '…'}'"


def to_json(value: object, indent: int | None = None) -> str:
    """`value` as JSON that can be read by people in every script, and shown: what `printable` spells out is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub(r"[^ -~\n]", lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def _spelled(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()
