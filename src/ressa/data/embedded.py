"""Pictures that a text holds: base64, as it is or as a `data:` address."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from io import BytesIO

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
