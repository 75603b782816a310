"""What ressa says when it refuses: one line, what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ressa.printable import printable, shown

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


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of somebody else's error as part of a line: errors for users are one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
