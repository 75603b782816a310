"""Pictures inside other files: base64 in a text, as it is or as a `data:` address, and cells of a table."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ressa.data.images import decode
from ressa.errors import RessaError

DATA = re.compile(r"data:image/[\w.+-]*(?:;[\w=.-]+)*;base64,", re.IGNORECASE)
BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A", "UD")  # PNG JPEG GIF WebP BMP TIFF PPM
SHORTEST = 64  # signs; file names that begin so are shorter, or end in a suffix
ENCODED = re.compile(r"[A-Za-z0-9+/\s]*=*\s*")


def is_embedded(text: str) -> bool:
    """Whether a text is a picture in base64, and not the name of one. Looks at its beginning only."""
    if text[:5].lower() == "data:":
        return DATA.match(text) is not None
    return len(text) >= SHORTEST and text.startswith(BEGINNINGS) and ENCODED.fullmatch(text[:4096]) is not None


def embedded_bytes(text: str) -> bytes:
    """The bytes of a picture in base64. Raises ValueError for anything else."""
    plain = re.sub(r"\s+", "", text[found.end() :] if (found := DATA.match(text)) else text)
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


@dataclass(frozen=True)
class ImageText:
    """A picture in base64, as a record or a benchmark (MMBench) has it in its field."""

    text: str
    where: str

    def open(self) -> Image.Image:
        try:
            data = embedded_bytes(self.text)
        except ValueError:
            raise RessaError(f'{self.where}: field "image" is not base64') from None
        return decode(BytesIO(data), f'{self.where}: field "image"')

    def identity(self) -> str:
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ImageCell:
    """A picture in a row of a table whose pictures are not decoded; `at` is its place in the cell, `path` its file."""

    table: Any
    row: int
    column: str
    where: str
    at: tuple[str | int, ...] = ()
    path: str | None = None  # where the cell holds no bytes

    def __str__(self) -> str:
        return f"bytes in column {self.column}"

    def open(self) -> Image.Image:
        held = self.held()
        return decode(Path(held) if isinstance(held, str) else BytesIO(held), f"{self.where}: image")

    def held(self) -> bytes | str:
        """The bytes of the picture, or the path of its file. Raises RessaError for base64 that is none."""
        cell = self.table[self.row][self.column]
        for key in self.at:
            cell = cell[key]
        if isinstance(cell, Mapping):
            cell = cell["path"] if cell["bytes"] is None else cell["bytes"]
        if not (isinstance(cell, str) and is_embedded(cell)):
            return cell
        try:
            return embedded_bytes(cell)
        except ValueError:
            raise RessaError(f'{self.where}: field "{self.column}" is not base64') from None

    def identity(self) -> str:
        return f"{getattr(self.table, '_fingerprint', '')}:{self.row}:{self.column}:{self.at}"
