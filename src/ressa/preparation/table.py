"""Any table that `datasets` reads: a folder that it saved, parquet files, or the name of a data set on the hub.

`columns` says where the table has what a record needs, "image=jpg,caption=txt"; columns that are called image, caption,
question and answer are found without it. An image column may hold pictures, addresses, or names below `--images`. A
caption may be a list of captions, an answer a list of answers or of {"answer": text} as in VQAv2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from ressa.data.columns import LISTS, ImageCell, light_rows, undecoded
from ressa.data.fields import as_text, empty
from ressa.data.images import shown
from ressa.data.tables import silent
from ressa.errors import RessaError, unknown
from ressa.preparation.items import Item, Place, Said, Skip
from ressa.preparation.unusable import DAMAGED, Unusable

FIELDS = ("image", "caption", "question", "answer")


def load(source: str, split: str) -> datasets.Dataset:
    """The table with its pictures undecoded.

    Raises:
        RessaError: no such table, or no such split in it.
    """
    try:
        with silent():
            table = _open(source)
    except Exception as error:  # whatever a damaged file or an absent data set makes the readers raise
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise RessaError(f"{source}: no table that datasets can read ({reason})") from None
    if isinstance(table, Mapping):
        if split not in table:
            raise unknown(f"split of {source}", split, [str(name) for name in table])
        table = table[split]
    return undecoded(table)


def _open(source: str) -> Any:
    path = Path(source)
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=str(path))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    if path.is_dir():
        return datasets.load_dataset(str(path))
    name, _, config = source.partition(":")
    return datasets.load_dataset(name, config or None)


def mapping(table: datasets.Dataset, columns: str | None, name: str) -> dict[str, str]:
    """Field of a record -> column of the table. Raises RessaError for unknown names, or if nothing could be made."""
    there = {key: key for key in FIELDS if key in table.column_names}
    for entry in filter(None, (columns or "").split(",")):
        key, found, column = (word.strip() for word in entry.partition("="))
        if key not in FIELDS:
            raise unknown("field in --columns", key, FIELDS)
        if not found or column not in table.column_names:
            raise unknown(f"column of {name}", column, table.column_names)
        there[key] = column
    if "image" not in there or ("caption" not in there and not {"question", "answer"} <= set(there)):
        raise RessaError(
            f"{name}: needs an image, and a caption or question and answer; say with --columns "
            f"image=...,caption=... which of its columns they are: {', '.join(table.column_names)}"
        )
    return there


def rows(table: datasets.Dataset, columns: Mapping[str, str], name: str) -> Iterator[Item | Skip]:
    """A picture a row. Raises RessaError naming row and column for what is no text."""
    read = table.select_columns(list(dict.fromkeys(columns.values())))
    for n, (row, _) in enumerate(light_rows(read, name, (columns["image"],))):
        where = f"{name}: row {n}"
        said = _captions(row, columns, where) if "caption" in columns else []
        if {"question", "answer"} <= set(columns):
            said.append(_question(row, columns, where))
        value = row[columns["image"]]
        images = value if isinstance(value, list) else [value]
        if len(images) > 1:
            yield Skip("several pictures", where)
        elif all(map(empty, images)):
            yield Skip("without a picture", where)
        elif isinstance(images[0], ImageCell):
            yield Item(f"row {n}", ("row", n), tuple(said), where)
        else:
            place = _place(images[0], columns["image"], where)
            yield Item(str(place[1]), place, tuple(said), where)


def cell(table: datasets.Dataset, n: int, column: str) -> bytes | str:
    """The bytes of a picture, or the path of its file. Raises Unusable for base64 that is damaged."""
    at = (0,) if isinstance(table.features[column], LISTS) else ()
    try:
        return ImageCell(table, n, column, f"row {n}", at).held()
    except RessaError as error:
        raise Unusable(DAMAGED, str(error)) from None


def _place(value: object, column: str, where: str) -> Place:
    if not isinstance(value, str):
        raise RessaError(f'{where}: field "{column}" must be a picture, an address or a file name, not {shown(value)}')
    return ("url" if value.startswith(("http://", "https://")) else "file", value)


def _captions(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> list[Said]:
    return [Said(told) for told in _texts(row, columns["caption"], where)]


def _question(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Said:
    question, *_ = _texts(row, columns["question"], where)
    answers = _texts(row, columns["answer"], where)
    return Said(answers[0], question, others=tuple(answers[1:]))


def _texts(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    value = "" if row[column] is None else row[column]  # counted as an empty text
    listed = value if isinstance(value, list) else [value]
    plain = [entry.get("answer") if isinstance(entry, Mapping) else entry for entry in listed]
    texts = [as_text(entry) for entry in plain]
    if not plain or None in texts:
        raise RessaError(f'{where}: field "{column}" must be a text or a list of texts, not {shown(value)}')
    return [text for text in texts if text is not None]
