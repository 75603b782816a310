"""Columns of `datasets` tables, whoever wrote them: which hold pictures, and labels by their names.

A picture is an `Image`, what an `Image` becomes when its features are lost (`struct<bytes, path>`), plain binary, or
text in base64; or a list of any of these. Nothing is decoded here, and no bytes are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import datasets
import pyarrow as pa

from ressa.data.embedded import ImageCell, is_embedded
from ressa.data.media import PICTURES

BINARY = ("binary", "large_binary")
LISTS = (datasets.List, datasets.LargeList)
MEDIA = (datasets.Image, datasets.Audio, datasets.Video)


def light_rows(
    table: datasets.Dataset, name: str, texts: tuple[str, ...] = PICTURES
) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, "name:7") with an `ImageCell` (a list of them, None) in place of each picture, and labels as their names.

    Args:
        texts: columns whose texts may be pictures in base64.
    """
    table = undecoded(table)
    heavy = {column: _held(table, column) for column, feature in table.features.items() if is_picture(feature)}
    inner = {c: feature for c, feature in table.features.items() if c not in heavy and _has_more(feature)}
    for row, raw in enumerate(_without(table, list(heavy))):
        where = f"{name}:{row}"
        light = dict(raw)
        for column, held in heavy.items():
            light[column] = _cells(ImageCell(table, row, column, where), held[row])
        for column, feature in inner.items():
            light[column] = _lifted(named(feature, raw[column]), feature, ImageCell(table, row, column, where))
        for column in texts:
            if isinstance(light.get(column), str) and is_embedded(light[column]):
                light[column] = ImageCell(table, row, column, where)
        yield light, where


def undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """The table with its pictures, sounds and films as they are stored, wherever in a column they stand."""
    for column, feature in table.features.items():
        if (plain := _plain(feature)) != feature:
            table = table.cast_column(column, plain)
    return table.with_format(None)


def is_picture(feature: Any) -> bool:
    """Whether a column of that kind holds pictures, or lists of them."""
    if isinstance(feature, LISTS):
        return is_picture(feature.feature) and not isinstance(feature.feature, LISTS)
    if isinstance(feature, dict):
        kinds = {key: getattr(value, "dtype", None) for key, value in feature.items()}
        return set(kinds) == {"bytes", "path"} and kinds["bytes"] in BINARY
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in BINARY


def named(feature: Any, value: Any) -> Any:
    """`value` with the names of labels (`ClassLabel`) for their numbers; None for -1, which stands for no label."""
    if isinstance(feature, datasets.ClassLabel):
        known = isinstance(value, int) and 0 <= value < feature.num_classes
        return feature.int2str(value) if known else None
    if isinstance(feature, LISTS) and isinstance(value, list):
        return [named(feature.feature, entry) for entry in value]
    if isinstance(feature, dict) and isinstance(value, Mapping):
        return {key: named(feature.get(key), entry) for key, entry in value.items()}
    return value


def _plain(feature: Any) -> Any:
    if isinstance(feature, MEDIA):
        return type(feature)(decode=False) if feature.decode else feature
    if isinstance(feature, LISTS):
        plain = _plain(feature.feature)
        return feature if plain == feature.feature else type(feature)(plain)
    return {key: _plain(value) for key, value in feature.items()} if isinstance(feature, dict) else feature


def _has_more(feature: Any) -> bool:
    """Whether labels or pictures stand somewhere in it."""
    if isinstance(feature, LISTS):
        return _has_more(feature.feature)
    inside = isinstance(feature, dict) and any(map(_has_more, feature.values()))
    return inside or isinstance(feature, datasets.ClassLabel) or is_picture(feature)


def _without(table: datasets.Dataset, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    rest = table.remove_columns(columns)
    return iter(rest) if rest.column_names else iter([{}] * len(table))


def _held(table: datasets.Dataset, column: str) -> list[Any]:
    """Per row None (no picture), True (bytes in the table), a path, or a list of these. Reads no bytes."""
    found: list[Any] = []
    for batch in table.select_columns([column]).with_format("arrow").iter(1000):
        found += [_peek(cell) for cell in batch[column]]
    return found


def _peek(cell: Any) -> Any:
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.ListScalar):
        return [_peek(entry) for entry in cell.values]
    if not isinstance(cell, pa.StructScalar) or cell["bytes"].is_valid:
        return True
    return cell["path"].as_py() or None


def _cells(cell: ImageCell, held: Any) -> Any:
    if isinstance(held, list):
        return [_cells(_inside(cell, i), entry) for i, entry in enumerate(held)]
    return None if held is None else replace(cell, path=held if isinstance(held, str) else None)


def _lifted(value: Any, feature: Any, cell: ImageCell) -> Any:
    """`value` with cells for the pictures inside it: those of chats, whose parts are lists of structs."""
    if is_picture(feature) and not isinstance(feature, LISTS):
        outside = isinstance(value, Mapping) and value["bytes"] is None
        return _cells(cell, value["path"] if outside else value and True)
    if isinstance(feature, LISTS) and isinstance(value, list):
        return [_lifted(entry, feature.feature, _inside(cell, i)) for i, entry in enumerate(value)]
    if isinstance(feature, dict) and isinstance(value, Mapping):
        return {key: _lifted(entry, feature.get(key), _inside(cell, key)) for key, entry in value.items()}
    return value


def _inside(cell: ImageCell, key: str | int) -> ImageCell:
    return replace(cell, at=(*cell.at, key))
