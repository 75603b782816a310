"""JSON as it comes: one line for whatever is wrong with it, and only text that can be written again."""

from __future__ import annotations

import codecs
import json
from typing import Any

from ressa.errors import RessaError

WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def parse(data: bytes, where: str, *, whole: bool = False) -> Any:
    """What JSON in UTF-8 says; halves of surrogate pairs, which no tokenizer takes, become U+FFFD.

    Args:
        where: the file, with the line if `data` is one; with `whole` it is the file alone.

    Raises:
        RessaError: not UTF-8, malformed, nested too deeply, or a number of too many digits.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
        return _mended(value) if b"\\ud" in data or b"\\uD" in data else value
    except UnicodeDecodeError:
        hint = ": it is UTF-16, save it as UTF-8" if data.startswith(WIDE) else ""
        raise RessaError(f"{where}: not UTF-8 text{hint}") from None
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}" if whole else where
        raise RessaError(f"{place}: malformed JSON at column {error.colno} ({error.msg})") from None
    except RecursionError:
        raise RessaError(f"{where}: malformed JSON (nested too deeply)") from None
    except ValueError:  # Python's guard against numbers that take long to convert
        raise RessaError(f"{where}: a number of more digits than can be read; write it as a text") from None


def well_formed(text: str) -> str:
    """`text` with U+FFFD for halves of surrogate pairs.

    >>> well_formed("an owl \\ud83e")
    'an owl �'
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [_mended(entry) for entry in value]
    if isinstance(value, dict):
        return {well_formed(key): _mended(value) for key, value in value.items()}
    return value
