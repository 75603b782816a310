"""Pictures of records: found when the records are read, opened when they are needed, never trusted.

A data folder may come from anywhere, so a path may not lead out of it, a picture may not be larger than Pillow's limit
(`PIL.Image.MAX_IMAGE_PIXELS`), and only plain raster formats are decoded.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
import warnings
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Protocol

from PIL import Image

from ressa.data.pixels import to_rgb
from ressa.errors import RessaError
from ressa.errors import shown as shown  # readers know it from here

LFS = b"version https://git-lfs"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no EPS: Pillow would run Ghostscript on it


class Picture(Protocol):
    """Anything that can be opened as an RGB picture; `where` says which record it belongs to."""

    @property
    def where(self) -> str: ...

    def open(self) -> Image.Image: ...

    def identity(self) -> str:
        """A text that changes when the picture may have changed; cached answers are keyed by it."""


@dataclass(frozen=True)
class ImageFile:
    """A picture in the data folder."""

    path: Path
    where: str

    def open(self) -> Image.Image:
        return decode(self.path, f"{self.where}: image {shown(str(self.path), limit=4096)}")

    def identity(self) -> str:
        found = self.path.stat()
        return f"{self.path}:{found.st_size}:{found.st_mtime_ns}"


@dataclass(frozen=True)
class GreyImage:
    """A plain grey picture of the same size as `of`: what a model answers without seeing."""

    of: Picture

    @property
    def where(self) -> str:
        return self.of.where

    def open(self) -> Image.Image:
        return Image.new("RGB", self.of.open().size, (128, 128, 128))

    def identity(self) -> str:
        return f"grey:{self.of.identity()}"


def decode(source: Path | BytesIO, what: str) -> Image.Image:
    """Open a picture as RGB (`pixels.to_rgb`), upright as its EXIF says; of an animation the first frame.

    Raises:
        RessaError: one line that starts with `what`: the picture is missing, too large, truncated or no picture at all.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but readable pictures are the user's normal case
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise RessaError(f"{what} is larger than {limit} pixels; scale it down or remove the record") from None
    except Exception as error:  # decoders of damaged files raise whatever their parsing ran into
        reason = (str(error).splitlines() or [""])[0].replace(str(source), "it") or type(error).__name__
        if _head(source).startswith(LFS):
            reason = "it is a pointer of Git LFS, not yet the picture: git lfs pull"
        raise RessaError(f"{what} cannot be read ({reason}); replace the file or remove the record") from None


def _head(source: Path | BytesIO) -> bytes:
    if isinstance(source, BytesIO):
        return source.getvalue()[: len(LFS)]
    try:
        with source.open("rb") as file:
            return file.read(len(LFS))
    except OSError:
        return b""


def picture_names(root: Path) -> list[str]:
    """All files below `root` that are called as pictures are, relative to it, sorted; hidden ones are left out."""
    files = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts))


def spellings(name: str) -> tuple[str, ...]:
    """`name`, and as other systems would have written it: Windows with `\\`, macOS with its accents taken apart."""
    if name.isascii() and "\\" not in name:
        return (name,)
    plain = name.replace("\\", "/")
    return tuple(dict.fromkeys((name, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))))


@dataclass
class ImageFolder:
    """Finds pictures below `root`. One lstat per name; directories are resolved once."""

    root: Path
    _parents: dict[str, str] = field(default_factory=dict)
    _found: dict[str, Path] = field(default_factory=dict)

    def find(self, name: str, where: str) -> ImageFile:
        """The file `name` (relative, below the folder) for the record at `where`.

        Raises:
            RessaError: the name is absolute, a URL, leads out of the folder (.., a symbolic link), or is no file.
        """
        if name not in self._found:
            self._found[name] = Path(self._resolve(self._spelt(name), f"{where}: image {shown(name)}"))
        return ImageFile(self._found[name], where)

    def _spelt(self, name: str) -> str:
        """`name` as the disk has it."""
        named = spellings(name)
        if len(named) == 1 or "\0" in name:
            return name
        return next((spelt for spelt in named if os.path.lexists(os.path.join(self.root, spelt))), name)

    def _resolve(self, name: str, what: str) -> str:
        if "://" in name:
            raise RessaError(f"{what} is a URL; reading records downloads nothing: save the picture in {self.root}")
        if not name or "\0" in name:
            raise RessaError(f"{what} is not a file name")
        if os.path.isabs(name) or ".." in re.split(r"[/\\]", name):
            raise self._leaves(what)
        parent, base = os.path.split(os.path.join(self.root, name))
        if parent not in self._parents:
            self._parents[parent] = self._contained(parent, what)
        path = os.path.join(self._parents[parent], base)
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                path = self._contained(path, what)
                mode = os.stat(path).st_mode
        except (OSError, ValueError):
            raise RessaError(f"{what} does not exist in {self.root}; add the file or remove the record") from None
        if not stat.S_ISREG(mode):
            raise RessaError(f"{what} is not a file")
        return path

    def _contained(self, path: str, what: str) -> str:
        root, real = os.path.realpath(self.root), os.path.realpath(path)
        if real != root and not real.startswith(os.path.join(root, "")):
            raise self._leaves(what)
        return real

    def _leaves(self, what: str) -> RessaError:
        return RessaError(f"{what} leaves the data folder {self.root}; pictures must lie inside it")
