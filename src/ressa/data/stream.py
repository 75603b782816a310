"""Files of records, one after the other, with errors that name file and line or record.

JSON is read by `ijson`, so that a huge file is never in memory as a whole.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from ressa.data.fields import an_object
from ressa.data.parse import parse, well_formed
from ressa.errors import RessaError, check_extra, shown

BLOCK = 1 << 16
Row = tuple[Mapping[str, Any], str]  # (record, "file:7" or "file: questions[7]")


def entries(path: Path, prefix: str, form: str) -> Iterator[Row]:
    """Each object in the list at `prefix`: "item" for a list, "images.item" for the list under "images".

    Args:
        form: what the file should look like, for the error.

    Raises:
        RessaError: no such file, no JSON, no such list in it, or an entry that is no object.
    """
    key = prefix.removesuffix("item").removesuffix(".")
    for n, record in enumerate(_events(path, "items", prefix, form)):
        where = f"{path}: {key}[{n}]" if key else f"{path}: record {n + 1}"
        yield an_object(record, where), where


def named_entries(path: Path, form: str) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """(name, object, where) of each entry of the one object in the file. Raises as `entries`."""
    for name, record in _events(path, "kvitems", "", form):
        where = f"{path}: record {shown(name)}"
        yield well_formed(name), an_object(record, where), where


def json_lines(path: Path) -> Iterator[Row]:
    """Each object of a file with one a line. Raises RessaError naming file and line."""
    for line, where in _lines(path):
        if line.strip():
            yield an_object(parse(line, where), where), where


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(line, where) of a text. Lines end as files end them: other separators of Unicode stand inside texts."""
    for line, where in _lines(path):
        try:
            yield line.decode("utf-8-sig").rstrip("\r\n"), where
        except UnicodeDecodeError:
            raise RessaError(f"{where}: not UTF-8 text") from None


def first_sign(path: Path) -> bytes:
    """The first byte of a file that is no space, nor a byte order mark."""
    with reading(path) as file:
        return file.read(BLOCK).removeprefix(codecs.BOM_UTF8).lstrip()[:1]


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The file, opened. Raises RessaError for whatever the system has against it."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror or error})") from None


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    with reading(path) as file:
        for number, line in enumerate(file, 1):
            yield line, f"{path}:{number}"


def _ijson() -> Any:
    check_extra("data", "ijson")
    return import_module("ijson")


def _events(path: Path, reader: str, prefix: str, form: str) -> Iterator[Any]:
    """What `ijson` finds. A file that it cannot read is read again, slowly near the fault, to say where that is."""
    if not path.is_file():
        raise RessaError(f"{path}: no such file; give {form}")
    ijson = _ijson()
    read, found = partial(getattr(ijson, reader), prefix=prefix, use_float=True), 0
    with reading(path) as file:
        file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
        try:
            for entry in read(file, buf_size=BLOCK):
                found += 1
                yield entry
        except (ijson.JSONError, ValueError):  # ValueError: a number of thousands of digits
            raise _fault(path, read, max(0, file.tell() - BLOCK)) from None
        size = file.tell()
    if not found:
        key = prefix.removesuffix("item").removesuffix(".")
        what = f'field "{key}" is missing or empty' if key else f"no records in {size:,} bytes"
        raise RessaError(f"{path}: {what}; give {form}")


class _Slowly:
    """A file that gives single bytes from `start` on, so that whoever reads it stops exactly at a fault."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.start, self.lines = file, start, 1

    def read(self, size: int) -> bytes:
        block = self.file.read(min(size, self.start - self.file.tell()) if self.file.tell() < self.start else 1)
        self.lines += block.count(b"\n")
        return block


def _fault(path: Path, read: Callable[..., Iterator[Any]], start: int) -> RessaError:
    ijson = _ijson()
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
