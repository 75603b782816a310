"""Any table that `datasets` reads: a folder that it saved, parquet files, or the name of a data set on the hub.

`columns` says where the table has what a record needs, "image=jpg,caption=txt"; columns that are called image, caption,
question and answer are found without it. An image column may hold pictures, addresses, or names below `--images`. A
caption may be a list of captions, an answer a list of answers or of {"answer": text} as in VQAv2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from ressa.data.columns import LISTS, light_rows
from ressa.data.embedded import ImageCell
from ressa.data.fields import empty, texts_in
from ressa.data.items import Annotation, Item, Place, Skip
from ressa.errors import RessaError, shown, unknown
from ressa.preparation.unusable import DAMAGED, Unusable

FIELDS = ("image", "caption", "question", "answer")


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
        captions = _texts(row, columns["caption"], where) if "caption" in columns else []
        annotations = [Annotation(caption) for caption in captions]
        if {"question", "answer"} <= set(columns):
            annotations.append(_question(row, columns, where))
        value = row[columns["image"]]
        images = value if isinstance(value, list) else [value]
        if len(images) > 1:
            yield Skip("several pictures")
        elif all(map(empty, images)):
            yield Skip("without a picture")
        elif isinstance(images[0], ImageCell):
            yield Item(f"row {n}", ("row", n), tuple(annotations), where)
        else:
            place = _place(images[0], columns["image"], where)
            yield Item(str(place[1]), place, tuple(annotations), where)


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


def _question(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Annotation:
    question, *_ = _texts(row, columns["question"], where)
    answers = _texts(row, columns["answer"], where)
    return Annotation(answers[0], question, others=tuple(answers[1:]))


def _texts(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    value = "" if row[column] is None else row[column]  # counted as an empty text
    texts = texts_in(value)
    if texts is None:
        raise RessaError(f'{where}: field "{column}" must be a text or a list of texts, not {shown(value)}')
    return texts
