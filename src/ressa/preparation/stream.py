"""Huge JSON files, record by record (`ijson`), so that none of them is ever in memory as a whole."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from ressa.data.images import shown
from ressa.data.parse import parse, well_formed
from ressa.errors import RessaError

BLOCK = 1 << 16


def entries(path: Path, prefix: str, form: str, *, lines: bool = False) -> Iterator[tuple[Mapping[str, Any], str]]:
    """(object, where) of each object in the list at `prefix` ("item", "images.item").

    Args:
        form: what the file should look like, for the error.
        lines: whether the file may hold one object a line instead of a list.

    Raises:
        RessaError: no such file, no JSON, no such list in it, or an entry that is no object.
    """
    if lines and _begins_with_object(path):
        yield from _lines(path)
        return
    for n, (record, where) in enumerate(_events(path, "items", prefix, form), 1):
        if not isinstance(record, Mapping):
            raise RessaError(f"{where}: record {n} must be an object in braces, not {shown(record)}")
        yield record, f"{where}: record {n}"


def named_entries(path: Path, form: str) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """(name, object, where) of each entry of the one object in the file. Raises as `entries`."""
    for (name, record), where in _events(path, "kvitems", "", form):
        if not isinstance(record, Mapping):
            raise RessaError(f"{where}: record {shown(name)} must be an object in braces, not {shown(record)}")
        yield well_formed(name), record, f"{where}: record {shown(name)}"


def _begins_with_object(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(BLOCK).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def _lines(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    with path.open("rb") as file:
        for n, line in enumerate(file, 1):
            if line.strip():
                record = parse(line, f"{path}:{n}")
                if not isinstance(record, Mapping):
                    raise RessaError(f"{path}:{n}: a record must be an object in braces, not {shown(record)}")
                yield record, f"{path}:{n}"


def _events(path: Path, reader: str, prefix: str, form: str) -> Iterator[tuple[Any, str]]:
    """What `ijson` finds. A file that it cannot read is read again, slowly near the fault, to say where that is."""
    if not path.is_file():
        raise RessaError(f"{path}: no such file; give {form}")
    read, found = partial(getattr(ijson, reader), prefix=prefix, use_float=True), 0
    try:
        with path.open("rb") as file:
            file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
            try:
                for entry in read(file, buf_size=BLOCK):
                    found += 1
                    yield entry, str(path)
            except (ijson.JSONError, ValueError):  # ValueError: a number of thousands of digits
                raise _fault(path, read, max(0, file.tell() - BLOCK)) from None
            size = file.tell()
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None
    if not found:
        raise RessaError(f"{path}: no records in {size:,} bytes; give {form}")


class _Slowly:
    """A file that gives single bytes from `start` on, so that whoever reads it stops exactly at a fault."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.start, self.lines = file, start, 1

    def read(self, size: int) -> bytes:
        block = self.file.read(min(size, self.start - self.file.tell()) if self.file.tell() < self.start else 1)
        self.lines += block.count(b"\n")
        return block


def _fault(path: Path, read: Callable[..., Iterator[Any]], start: int) -> RessaError:
    found, reason = 0, "it ends too early"
    with path.open("rb") as file:
        slow = _Slowly(file, start)
        file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
        try:
            for _ in read(slow, buf_size=BLOCK):
                found += 1
        except ijson.JSONError as error:
            reason = re.split(r"\n|\\n", str(error))[0].removeprefix("b'").removeprefix('b"')
        except ValueError:
            reason = "a number of more digits than can be read"
        return RessaError(
            f"{path}:{slow.lines}: malformed JSON after record {found}, at byte {file.tell():,} ({reason})"
        )
