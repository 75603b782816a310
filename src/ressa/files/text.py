"""Text files that are written whole or not at all, JSON as ressa reads it, and sizes as people write them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ressa.errors import RessaError

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise RessaError(f"{path}: cannot be written ({error.strerror})") from None


def read_json(path: Path, absent: Any = None) -> Any:
    """What a JSON file holds, `absent` if there is none. Raises RessaError if it is not JSON, or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return absent
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise RessaError(f"{path}: is not JSON any more; delete it, or name another folder") from None


def to_bytes(text: str, what: str = "memory") -> int:
    """The bytes in "24GiB"; a G, GB or GiB is 1024^3, as memory is sold. Raises RessaError for what is no size.

    >>> to_bytes("1.5 GiB") == 1536 * to_bytes("1M")
    True
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise RessaError(f"{what}: '{text}' is no size; write it as 24GiB or 512MiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def format_bytes(size: float) -> str:
    """
    >>> format_bytes(3 * 1024**3), format_bytes(0.25 * 1024**3)
    ('3 GiB', '256 MiB')
    """
    unit = min(("G", "M", "K"), key=lambda unit: size < 0.95 * UNITS[unit])
    return f"{size / UNITS[unit]:{'.0f' if size >= 99.5 * UNITS[unit] else '.3g'}} {unit}iB"
