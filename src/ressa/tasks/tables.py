"""Benchmarks that live as tables: a hub dataset, a folder of parquet files, a folder that `datasets` saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import datasets

from ressa.data.columns import ImageCell, light_rows
from ressa.data.fields import PICTURES, one
from ressa.data.images import Picture
from ressa.errors import RessaError
from ressa.tasks.base import Source

TableRow = tuple[Mapping[str, Any], str, dict[str, Picture]]  # (record, "name:7", its pictures by column)


def is_table(source: Source) -> bool:
    """Whether `data` is a table rather than official files."""
    if isinstance(source.data, datasets.Dataset | datasets.DatasetDict):
        return True
    if not isinstance(source.data, str | PathLike):
        kind = type(source.data).__name__
        raise RessaError(f"data: expected a folder, a file, a hub dataset or a datasets.Dataset, not {kind}")
    path = Path(source.data)
    if path.is_file():
        return path.suffix == ".parquet"
    if path.is_dir():
        return bool((path / "state.json").is_file() or (path / "dataset_dict.json").is_file() or _parquet(path, ""))
    return str(source.data).count("/") == 1 and not str(source.data).startswith((".", "/", "~"))


def rows(source: Source, columns: tuple[str, ...] = ()) -> Iterator[TableRow]:
    """Each row without its pictures, its place, and its pictures, still undecoded.

    Raises:
        RessaError: no such dataset or split, or a column of `columns` is not there.
    """
    name = "dataset" if isinstance(source.data, datasets.Dataset | datasets.DatasetDict) else str(source.data)
    if source.images is not None:
        raise RessaError(f"images: {name} has its pictures within its rows; leave it out")
    table = _open(source, name)
    if missing := [column for column in columns if column not in table.column_names]:
        there = ", ".join(table.column_names)[:200]
        raise RessaError(f'{name}: column "{missing[0]}" is missing (there: {there})')
    for raw, where in light_rows(table, name, PICTURES):
        seen = {column: value for column, value in raw.items() if _shows(value)}
        pictures = {column: one(value, column, where) for column, value in seen.items()}
        yield {column: value for column, value in raw.items() if column not in seen}, where, pictures


def _shows(value: Any) -> bool:
    return isinstance(value, ImageCell) or (isinstance(value, list) and any(map(_shows, value)))


def picture(pictures: Mapping[str, Picture], where: str, column: str = "image") -> Picture:
    """The picture in a column. Raises RessaError if there is none: a model that sees nothing still answers."""
    if column not in pictures:
        raise RessaError(f'{where}: column "{column}" holds no picture (bytes, base64 or an Image); fill or remove it')
    return pictures[column]


def _open(source: Source, name: str) -> datasets.Dataset:
    try:
        table = _load(source)
    except RessaError:
        raise
    except Exception as error:  # whatever the hub, the network or a damaged file makes the reader raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RessaError(f"{name}: no split {source.split} of a dataset could be read from there ({reason})") from None
    return table[_split(source.split, table, name)] if isinstance(table, datasets.DatasetDict) else table


def _load(source: Source) -> Any:
    if isinstance(source.data, datasets.Dataset | datasets.DatasetDict):
        return source.data
    path = Path(source.data)
    if path.is_file():
        return datasets.Dataset.from_parquet(str(path))
    if path.is_dir() and not _parquet(path, ""):
        return datasets.load_from_disk(str(path))
    if path.is_dir():
        if not (files := _parquet(path, source.split)):
            there = ", ".join(sorted({p.name.split("-")[0] for p in _parquet(path, "")}))
            raise RessaError(f"{path}: no {source.split}*.parquet (splits there: {there})")
        return datasets.Dataset.from_parquet([str(file) for file in files])
    name = str(source.data)
    configs = datasets.get_dataset_config_names(name)
    configs = ["default"] if "default" in configs else configs  # without one they are parts of a whole: MMMU's subjects
    splits = [_split(source.split, datasets.get_dataset_split_names(name, config), name) for config in configs]
    parts = [datasets.load_dataset(name, c, split=split) for c, split in zip(configs, splits, strict=True)]
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def _split(wanted: str, there: Iterable[Any], name: str) -> str:
    """The split that is meant: publishers' files say val, the hub mostly validation."""
    names = [str(split) for split in there]
    for split in (wanted, "validation" if wanted == "val" else "val" if wanted == "validation" else wanted):
        if split in names:
            return split
    raise RessaError(f"{name}: no split {wanted} (splits there: {', '.join(names)})")


def _parquet(path: Path, split: str) -> list[Path]:
    return sorted(path.glob(f"**/{split}*.parquet"))
