"""Records with their pictures in Parquet shards, {split}-00000-of-00012.parquet, for many processes.

Parquet and not tar files of webdataset: `datasets`, which ressa needs anyway, writes and reads it, gives each process
its own shards (`streaming=True`, `split_dataset_by_node`) or each record by its number, and the hub shows it. A picture
is stored with every record about it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from ressa.data.tables import silent
from ressa.errors import RessaError

TEXT = datasets.Value("string")
FEATURES = {  # the same in every shard, whatever its records have
    "image": datasets.Image(),
    **dict.fromkeys(("id", "kind", "caption", "prefix", "question", "answer"), TEXT),
    "answers": datasets.List(TEXT),
    "messages": datasets.List({"role": TEXT, "content": TEXT}),
}


def write_shards(folder: Path, split: str, records: Iterator[Mapping[str, Any]], size: int) -> int:
    """Writes `records`, whose "image" is the path of a picture, `size` in a shard; gives how many there are."""
    total = shards = 0
    for shards, rows in enumerate(_batches(records, size), 1):
        total += len(rows)
        _write(folder / f".{split}-{shards - 1:05d}", rows)
    for n in range(shards):
        os.replace(folder / f".{split}-{n:05d}", folder / f"{split}-{n:05d}-of-{shards:05d}.parquet")
    return total


def _batches(records: Iterator[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    rows: list[Mapping[str, Any]] = []
    for record in records:
        rows.append(record)
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


def _write(path: Path, rows: list[Mapping[str, Any]]) -> None:
    columns = {key: [_value(row, key) for row in rows] for key in FEATURES}
    try:
        with silent():
            datasets.Dataset.from_dict(columns, features=datasets.Features(FEATURES)).to_parquet(str(path))
    except OSError as error:
        raise RessaError(f"{path}: cannot be written ({error.strerror or error}); run again when it can") from None


def _value(row: Mapping[str, Any], key: str) -> Any:
    if key != "image":
        return row.get(key)
    path = Path(row[key])
    return {"bytes": path.read_bytes(), "path": path.name}
