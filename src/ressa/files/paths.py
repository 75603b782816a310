"""Paths as users name them: on the command line, in recipes and in Python alike."""

from __future__ import annotations

import os
from pathlib import Path

from ressa.errors import RessaError, shown


def path_of(name: str | Path, what: str) -> Path:
    """The path that `name` stands for, whether it exists or not; ~ is the home folder, also where no shell has seen it.

    Raises:
        RessaError: it is empty, or nothing that could be a path here: a NUL, a name too long, an unknown home, a folder
            above that may not be looked into. `what` says which path it is.
    """
    return Path(expanded(name, what))


def expanded(name: str | Path, what: str) -> str:
    """As `path_of`, letter by letter but for ~: for what may also be a name on the hub, where ./a/b is not a/b."""
    text = os.fspath(name)
    if not text.strip():
        raise RessaError(f"{what} is empty; name a folder or file (. is the current folder)")
    if "\0" in text:
        raise RessaError(f"{what} {shown(text)} has a NUL in it, which no path can; name another")
    path = os.path.expanduser(text)
    if text.startswith("~") and path == text:
        raise RessaError(f"{what} {shown(text)}: no home folder is known for that name; write it in full, or ./{text}")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: letters that the file system's encoding does not have
        reason = getattr(error, "strerror", None) or "not a name that the file system can hold"
        raise RessaError(f"{what} {shown(text)} cannot be reached ({reason}); name another") from None
    return path
