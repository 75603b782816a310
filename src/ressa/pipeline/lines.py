"""Values of a study that go together: given one by one, or as equal steps on a line with a constant sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ressa.errors import RessaError, shown, unknown

KEYS = ("name", "keys", "values", "sum", "from", "to", "points", "set")


@dataclass(frozen=True)
class Line:
    """`points`: {dotted key: value} each; `fixed`: what stays the same along the line."""

    name: str
    points: tuple[Mapping[str, Any], ...]
    fixed: Mapping[str, Any]


def points(line: Any) -> Line:
    """A line as a study's file tells it.

    Either `keys` and `values`, a list of as many values each; or one key, or two with a constant `sum`, and the shares
    `from`, `to` and the number of `points`. `set` holds dotted keys that stay the same along the line.

    Raises:
        RessaError: anything else.
    """
    if not isinstance(line, Mapping):
        raise RessaError("must be {keys: [...], values: [[...], ...]} or {keys: [...], sum: 100%, from: ...}")
    for key in line:
        if key not in KEYS:
            raise unknown("key", str(key), KEYS)
    keys, fixed = line.get("keys"), line.get("set", {})
    if not isinstance(keys, list) or not keys or len(set(map(str, keys))) < len(keys):
        raise RessaError("keys: must be a list of dotted keys, as in [prune.vision, prune.language]")
    if not isinstance(fixed, Mapping):
        raise RessaError("set: must be {dotted key: value, ...}")
    rows = _given(line, len(keys)) if "values" in line else _steps(line, len(keys))
    name = line.get("name") or (f"sum {line['sum']}" if "sum" in line else " ".join(map(str, keys)))
    return Line(str(name), tuple(dict(zip(map(str, keys), row, strict=True)) for row in rows), fixed)


def _given(line: Mapping[str, Any], n: int) -> Sequence[Sequence[Any]]:
    if beside := [key for key in ("sum", "from", "to", "points") if key in line]:
        raise RessaError(f"values says all points: leave {beside[0]} out")
    rows = line["values"]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and len(row) == n for row in rows):
        raise RessaError(f"values: must be a list of points, each a list of {n} values, one for each key")
    return rows


def _steps(line: Mapping[str, Any], n: int) -> list[list[str]]:
    """Shares in equal steps, written as percentages."""
    if missing := [key for key in ("from", "to", "points") if key not in line]:
        raise RessaError(f"{missing[0]}: is missing (or give all points as values)")
    if n != (2 if "sum" in line else 1):
        raise RessaError(f"{n} keys: equal steps are of two keys with a constant sum, or of one key without")
    count = line["points"]
    if type(count) is not int or count < 2:
        raise RessaError(f"points: {shown(count)} is not a whole number of at least 2")
    start, end = _percent(line["from"], "from"), _percent(line["to"], "to")
    firsts = [start + (end - start) * Fraction(i, count - 1) for i in range(count)]
    rows = [[first] for first in firsts]
    if "sum" in line:
        rows = [[first, _percent(line["sum"], "sum") - first] for first in firsts]
    for share in (share for row in rows for share in row):
        if not 0 <= share <= 100:
            raise RessaError(f"a point is {_share(share)}, which is no share: change sum, from or to")
    return [[_share(share) for share in row] for row in rows]


def _percent(value: Any, key: str) -> Fraction:
    """A share as a person writes it, in percent: 20% and 0.2 are 20."""
    text = str(value).strip()
    try:
        return Fraction(text[:-1].strip()) if text.endswith("%") else Fraction(text) * 100
    except (ValueError, ZeroDivisionError):
        raise RessaError(f"{key}: {shown(value)} is no share, as 20% and 0.2 are") from None


def _share(percent: Fraction) -> str:
    return f"{float(percent):.6g}%"
