"""Official files, read with errors that name file, line or record, and field."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ressa.data.images import ImageFile, ImageFolder, shown, spellings
from ressa.data.parse import parse
from ressa.errors import RessaError
from ressa.tasks.base import Source

Row = tuple[Mapping[str, Any], str]  # (record, "file:7" or "file: questions[7]")
WORDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def folder(source: Source) -> Path:
    """The data folder (of a file: where it lies). Raises RessaError if there is none."""
    path = Path(source.data)
    if path.is_file():
        return path.parent
    if not path.is_dir():
        raise RessaError(f"{path}: no such data folder")
    return path


def find(source: Source, *patterns: str) -> Path:
    """The file that `data` is, or the first one in its folder that a pattern fits (also in annotations/).

    Raises:
        RessaError: none fits; says what was looked for and which files are there.
    """
    if Path(source.data).is_file():
        return Path(source.data)
    return beside(source, *patterns)


def beside(source: Source, *patterns: str) -> Path:
    """As `find`, in the folder even if `data` is one file of it."""
    root = folder(source)
    for pattern in patterns:
        for place in (root, root / "annotations"):
            if found := sorted(place.glob(pattern)):
                return found[0]
    there = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    raise RessaError(f"{root}: no {' or '.join(patterns)} (there: {there}); see docs/tasks.md for the files of a task")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises RessaError with file, line and column."""
    try:
        return parse(path.read_bytes(), str(path), whole=True)
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None


def listed(path: Path, key: str) -> list[Row]:
    """The records of the list under `key` of a JSON object, each with its place."""
    told = read_json(path)
    if not isinstance(told, Mapping):
        raise RessaError(f'{path}: must be an object with the field "{key}"')
    rows = need(told, key, list, str(path))
    return [(an_object(raw, f"{path}: {key}[{i}]"), f"{path}: {key}[{i}]") for i, raw in enumerate(rows)]


def named(path: Path) -> list[tuple[str, Mapping[str, Any], str]]:
    """(name, record, place) of a JSON object of objects."""
    told = an_object(read_json(path), str(path))
    return [(name, an_object(raw, f'{path}: "{name}"'), f'{path}: "{name}"') for name, raw in told.items()]


def lines(path: Path) -> Iterator[Row]:
    """The records of a file with one JSON object a line."""
    for number, line in enumerate(text_lines(path), 1):
        where = f"{path}:{number}"
        if line.strip():
            yield an_object(parse(line.encode(), where), where), where


def text_lines(path: Path) -> list[str]:
    """Lines end as files end them: other separators of Unicode, which `splitlines` knows too, stand inside JSON."""
    try:
        return [
            line.removesuffix("\r") for line in path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
        ]
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise RessaError(f"{path}: not UTF-8 text") from None


def tsv(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a table with tabs; `columns` must be in its head."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            head = reader.fieldnames or []
            if missing := [name for name in columns if name not in head]:
                raise RessaError(f'{path}:1: column "{missing[0]}" is missing (there: {", ".join(head)[:200]})')
            for raw in reader:
                where = f"{path}:{reader.line_num}"
                if None in raw or None in raw.values():
                    raise RessaError(f"{where}: has not as many fields as line 1 has columns")
                yield raw, where
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise RessaError(f"{path}: not a table of UTF-8 text with tabs ({error})") from None


def an_object(raw: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise RessaError(f"{where}: must be an object in braces, not {shown(raw)}")
    return raw


def need(raw: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A field of a record; RessaError naming place and field if it is missing, empty or of another kind."""
    value = raw.get(key)
    if value is None or value == "" or value == []:
        raise RessaError(f'{where}: field "{key}" is missing or empty')
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RessaError(f'{where}: field "{key}" must be {WORDS[kind]}, not {shown(value)}')
    return value.strip() if isinstance(value, str) else value


def ident(raw: Mapping[str, Any], key: str, where: str) -> str:
    """A number or text that names a thing, as text."""
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RessaError(f'{where}: field "{key}" must be a number or a text, not {shown(value)}')
    return str(value)


def texts(raw: Mapping[str, Any], key: str, where: str, inner: str = "") -> tuple[str, ...]:
    """A list of texts, or with `inner` of objects whose field `inner` is a text; empty ones are kept as they are."""
    found = []
    for i, item in enumerate(need(raw, key, list, where)):
        value = item.get(inner) if inner and isinstance(item, Mapping) else item
        if not isinstance(value, str):
            raise RessaError(f'{where}: field "{key}[{i}]{"." + inner if inner else ""}" must be a text')
        found.append(value)
    return tuple(found)


class Pictures:
    """Finds pictures of a task: below `--images` if the user named it, else in the data folder."""

    def __init__(self, source: Source, *places: str):
        self.root = source.images or folder(source)
        self.folder, self.places = ImageFolder(self.root), ("", "images", *places)

    def find(self, name: str, where: str) -> ImageFile:
        """The picture `name`, in the first of the places that has it. Raises RessaError as `ImageFolder.find`."""
        for place in self.places:
            if any((self.root / place / spelt).is_file() for spelt in spellings(name) if "\0" not in spelt):
                return self.folder.find(f"{place}/{name}" if place else name, where)
        return self.folder.find(f"{self.places[-1]}/{name}" if self.places[-1] else name, where)
