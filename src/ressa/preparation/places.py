"""The bytes of pictures, wherever they are: below folders, in zips, in tar shards, in a table, behind an address."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ressa.data.images import spellings
from ressa.data.items import Place
from ressa.errors import RessaError
from ressa.preparation.download import fetch, pool
from ressa.preparation.settings import Prepare
from ressa.preparation.unusable import ABSENT, DAMAGED, HEAVY, MOST_BYTES, Unusable

Cell = Callable[[int], "bytes | str | None"]


class Places:
    """Reads pictures. Many threads may.

    Args:
        images: folders and .zip files that names are looked up in, in this order.
        cell: what a row of the table holds, if the source is a table.

    Raises:
        RessaError: an entry of `images` is neither a folder nor a sound zip.
    """

    def __init__(self, images: Sequence[str], cell: Cell | None, settings: Prepare) -> None:
        self.roots = [_root(entry) for entry in images]
        self.cell, self.settings, self.http = cell, settings, pool(settings.workers)

    def read(self, place: Place) -> bytes:
        """The bytes of one picture. Raises Unusable if there are none."""
        kind, *rest = place
        try:
            if kind == "url":
                timeout, retries = self.settings.timeout, self.settings.retries
                return fetch(self.http, str(rest[0]), timeout=timeout, retries=retries)
            if kind == "tar":
                return _slice(str(rest[0]), int(rest[1]), int(rest[2]))
            if kind == "row":
                return self._row(int(rest[0]))
            return self._named([str(name) for name in rest])
        except OSError as error:
            raise Unusable(ABSENT, error.strerror or str(error)) from None

    def _row(self, n: int) -> bytes:
        value = self.cell(n) if self.cell else None
        if isinstance(value, bytes):
            return value
        if value is None:
            raise Unusable(ABSENT, "the cell is empty")
        return _whole(value)

    def _named(self, names: list[str]) -> bytes:
        for name in names:
            if os.path.isabs(name) or ".." in re.split(r"[/\\]", name) or "\0" in name:
                raise Unusable(ABSENT, f"{name} leads out of the folders of pictures")
            for spelt in spellings(name):
                if (found := self._in_roots(spelt)) is not None:
                    return found
        raise Unusable(ABSENT, f"no {' or '.join(names)} in what --images names")

    def _in_roots(self, name: str) -> bytes | None:
        for root in self.roots:
            if isinstance(root, zipfile.ZipFile):
                if name in root.NameToInfo:
                    return _member(root, name)
            elif (root / name).is_file():
                return _whole(root / name)
        return None


def _root(entry: str) -> Path | zipfile.ZipFile:
    path = Path(entry)
    if path.is_dir():
        return path
    if not path.is_file():
        raise RessaError(f"{entry}: no such folder or .zip of pictures")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise RessaError(f"{entry}: is neither a folder nor a sound .zip ({error})") from None


def _whole(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Unusable(ABSENT, "is not a file")
        if found.st_size > MOST_BYTES:
            raise Unusable(HEAVY, f"{found.st_size:,}")
        return file.read()


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > MOST_BYTES:
        raise Unusable(HEAVY, f"{info.file_size:,}")
    try:
        return archive.read(info)  # never more than file_size, and checked against its CRC
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise Unusable(DAMAGED, str(error)) from None


def _slice(path: str, offset: int, size: int) -> bytes:
    if size > MOST_BYTES:
        raise Unusable(HEAVY, f"{size:,}")
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
