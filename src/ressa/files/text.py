"""Text files that are written whole or not at all, and JSON as ressa reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ressa.errors import RessaError


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
