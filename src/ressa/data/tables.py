"""Rows of a `datasets` table as raw records; their pictures stay undecoded until they are opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from ressa.data.columns import ImageCell, light_rows
from ressa.data.fields import PICTURES
from ressa.data.images import ImageFolder, Picture, shown
from ressa.data.records import Find, finder, shards
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

    A picture is what `columns` takes for one (or a list of one); in a saved folder also a path below that folder.

    Raises:
        RessaError: not a table, no such split, or a picture file that does not exist.
    """
    folder = None
    if isinstance(source, Path):
        folder = ImageFolder(source.parent if source.is_file() else source)
    elsewhere = finder(folder)

    def find(value: object, where: str) -> Picture:
        if not isinstance(value, ImageCell):
            return elsewhere(value, where)
        if value.path is not None and folder is not None:
            return folder.find(value.path, where)
        if value.path is not None and not os.path.isfile(value.path):
            raise RessaError(f"{where}: image {shown(value.path)} does not exist; add the file or remove the record")
        return value

    for raw, where in light_rows(_table(source, split, name), name, PICTURES):
        yield raw, where, find


def _table(source: Any, split: str, name: str) -> datasets.Dataset:
    if isinstance(source, Path):
        saved = (source / "state.json").is_file() or (source / "dataset_dict.json").is_file()
        files = [] if saved else [str(path) for path in ([source] if source.is_file() else shards(source, split))]
        try:
            with silent():
                source = datasets.Dataset.from_parquet(files) if files else datasets.load_from_disk(str(source))
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
