"""Rows of a `datasets` table as raw records; their pictures stay undecoded until they are opened."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from ressa.data.images import ImageCell, ImageFolder, Picture, shown
from ressa.data.records import Find
from ressa.errors import RessaError, unknown


@contextmanager
def silent() -> Iterator[None]:
    """`datasets` keeps its bars to itself."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def rows(source: Path | Any, split: str, name: str) -> Iterator[tuple[dict[str, Any], str, Find]]:
    """(raw record, where, how to find its picture) for each row.

    A picture is an `Image` column (or a list of one); in a saved folder also a path below that folder.

    Raises:
        RessaError: not a table, no such split, or a picture file that does not exist.
    """
    folder = ImageFolder(source) if isinstance(source, Path) else None
    table = _table(source, split, name)
    columns = [c for c, feature in table.features.items() if _is_image(feature)]
    cells = table
    for column in columns:
        undecoded = datasets.Image(decode=False)
        listed = not isinstance(table.features[column], datasets.Image)
        cells = cells.cast_column(column, datasets.List(undecoded) if listed else undecoded)
    files = {column: _files(cells, column) for column in columns}
    for row, raw in enumerate(table.remove_columns(columns)):
        where = f"{name}:{row}"
        for column in columns:
            if column in ("image", "images"):
                cell = _cell(cells, row, column, files[column][row], where, folder)
                raw[column] = None if cell is None else [cell] if column == "images" else cell
        yield raw, where, _finder(folder)


def _table(source: Any, split: str, name: str) -> datasets.Dataset:
    if isinstance(source, Path):
        shards = sorted(str(path) for path in source.glob(f"{glob.escape(split)}-*-of-*.parquet"))
        try:
            with silent():
                source = datasets.Dataset.from_parquet(shards) if shards else datasets.load_from_disk(str(source))
        except Exception as error:  # whatever a damaged Arrow file makes the reader raise
            reason = (str(error).splitlines() or [""])[0]
            raise RessaError(f"{name}: cannot be read as a saved dataset ({reason})") from None
    if isinstance(source, datasets.DatasetDict):
        if split not in source:
            raise unknown(f"split of {name}", split, [str(key) for key in source])
        source = source[split]
    if not isinstance(source, datasets.Dataset):
        raise RessaError(f"{name}: expected a folder, a .jsonl file or a datasets.Dataset, not {type(source).__name__}")
    return source.with_format(None)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image) or isinstance(getattr(feature, "feature", None), datasets.Image)


def _files(table: datasets.Dataset, column: str) -> list[str | bool | None]:
    """Per row: a path (picture outside the table), True (bytes in the table), None (no picture). Reads no bytes."""
    found: list[str | bool | None] = []
    for batch in table.select_columns([column]).with_format("arrow").iter(1000):
        for cell in batch[column]:
            cell = cell[0] if cell.is_valid and isinstance(table.features[column], datasets.List) else cell
            if not cell.is_valid:
                found.append(None)
            else:
                found.append(True if cell["bytes"].is_valid else cell["path"].as_py())
    return found


def _cell(
    table: Any, row: int, column: str, file: str | bool | None, where: str, folder: ImageFolder | None
) -> Picture | None:
    if file is None:
        return None
    if isinstance(file, str):
        if folder is not None:
            return folder.find(file, where)
        if not os.path.isfile(file):
            raise RessaError(f"{where}: image {shown(file)} does not exist; add the file or remove the record")
    return ImageCell(table, row, column, where)


def _finder(folder: ImageFolder | None) -> Find:
    def find(value: object, where: str) -> Picture:
        if isinstance(value, ImageCell) or hasattr(value, "open"):
            return value  # type: ignore[return-value]
        if folder is None or not isinstance(value, str):
            raise RessaError(f'{where}: field "image" is a plain value; cast the column to datasets.Image()')
        return folder.find(value, where)

    return find
