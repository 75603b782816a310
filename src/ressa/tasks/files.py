"""A benchmark's files and tables, read with errors that name file, line or record, and field.

A task reads its official files itself, or, where they can be trained on too, by the items that `ressa data` prepares
(`from_items`).
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ressa.data.embedded import ImageCell
from ressa.data.fields import an_object, one
from ressa.data.images import ImageFile, ImageFolder, Picture, spellings
from ressa.data.items import Item, Skip
from ressa.data.parse import parse
from ressa.data.records import Record
from ressa.data.stream import Row, reading
from ressa.data.tables import load
from ressa.errors import RessaError
from ressa.tasks.base import Reading, Sample, Source

EMPTY = "empty text"


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


def read_object(path: Path) -> Mapping[str, Any]:
    """The object that a small JSON file holds. Raises RessaError with file, line and column."""
    with reading(path) as file:
        return an_object(parse(file.read(), str(path), whole=True), str(path))


def tsv(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a table with tabs; `columns` must be in its head."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            _check_columns(columns, reader.fieldnames or [], f"{path}:1")
            for raw in reader:
                where = f"{path}:{reader.line_num}"
                if None in raw or None in raw.values():
                    raise RessaError(f"{where}: has not as many fields as line 1 has columns")
                yield raw, where
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise RessaError(f"{path}: not a table of UTF-8 text with tabs ({error})") from None


def rows(source: Source, columns: tuple[str, ...] = ()) -> Iterator[Row]:
    """Each row of a table and its place; its pictures are cells, still undecoded.

    Raises:
        RessaError: no such table or split, or a column of `columns` is not there.
    """
    from ressa.data.columns import light_rows  # imports `datasets`, which is slow

    name = str(source.data) if isinstance(source.data, str | Path) else "dataset"
    if source.images is not None:
        raise RessaError(f"images: {name} has its pictures within its rows; leave it out")
    table = load(source.data, source.split, name, every_config=True)
    _check_columns(columns, table.column_names, name)
    yield from light_rows(table, name)


def picture(raw: Mapping[str, Any], where: str, column: str = "image") -> Picture:
    """The picture in a column. Raises RessaError if there is none: a model that sees nothing still answers."""
    cell = one(raw.get(column), column, where)
    if not isinstance(cell, ImageCell):
        raise RessaError(f'{where}: column "{column}" holds no picture (bytes, base64 or an Image); fill or remove it')
    return cell


def from_table(
    source: Source, columns: tuple[str, ...], sample: Callable[[Mapping[str, Any], str, Picture], Sample]
) -> Reading:
    """A sample of each row, made by `sample(row, where, picture)`. Raises as `rows`."""
    return Reading([sample(raw, where, picture(raw, where)) for raw, where in rows(source, (*columns, "image"))])


def from_items(
    items: Callable[[Path], Iterator[Item | Skip]], *patterns: str, places: tuple[str, ...] = ()
) -> Callable[[Source], Reading]:
    """A task's `read` by the items of its file: a sample of all captions of a picture, one of each question about it.

    Args:
        patterns: which file in the folder, "{split}.json"; `places`: where its pictures lie there, besides images/.

    Raises:
        RessaError (when it reads): no such file, a picture that is not there, or no item of the split.
    """

    def read(source: Source) -> Reading:
        path = find(source, *(pattern.format(split=source.split) for pattern in patterns))
        pictures, left_out, splits = Pictures(source, *places), Counter[str](), set()
        samples: list[Sample] = []
        for item in items(path):
            if isinstance(item, Skip):
                left_out[item.reason] += 1
                continue
            splits.add(item.split or source.split)
            if item.split in (None, source.split):
                found = _samples(item, pictures)
                samples += found
                left_out[EMPTY] += not found
        if source.split not in splits:
            there = ", ".join(sorted(splits))
            raise RessaError(f"{path}: no image of the split {source.split} (splits there: {there})")
        return Reading(samples, dict(+left_out))

    return read


def _samples(item: Item, pictures: Pictures) -> list[Sample]:
    image = pictures.find(item.where, *map(str, item.place[1:]))
    captions = tuple(a.text for a in item.annotations if a.question is None and a.text)
    key, samples = Path(item.picture).name, []
    if captions:
        samples.append(Sample(Record(key, None, captions, captions[0], image=image)))
    for n, a in enumerate(item.annotations):
        if a.question and a.text:
            record = Record(a.id or f"{key}-{n}", a.question, (a.text, *a.others), kind=a.kind, image=image)
            samples.append(Sample(record, a.kinds))
    return samples


def _check_columns(columns: tuple[str, ...], there: Sequence[str], where: str) -> None:
    if missing := [column for column in columns if column not in there]:
        raise RessaError(f'{where}: column "{missing[0]}" is missing (there: {", ".join(there)[:200]})')


class Pictures:
    """Finds pictures of a task: below `--images` if the user named it, else in the data folder."""

    def __init__(self, source: Source, *places: str):
        self.root = source.images or folder(source)
        self.folder, self.places = ImageFolder(self.root), ("", "images", *places)

    def find(self, where: str, *names: str) -> ImageFile:
        """The first of `names` that is in one of the places. Raises RessaError as `ImageFolder.find`."""
        for name in (f"{place}/{name}" if place else name for place in self.places for name in names):
            if any((self.root / spelt).is_file() for spelt in spellings(name) if "\0" not in spelt):
                return self.folder.find(name, where)
        return self.folder.find(names[0], where)  # raises, and says the name as the record has it
