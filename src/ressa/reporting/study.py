"""What a study came to: a table for the terminal, and plots of its score along one of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ressa.errors import printable
from ressa.reporting.figure import save
from ressa.reporting.table import cell, percent, plain

SCORE, SEED = "exact_match", "seed"
ALONG = ("prune.vision", "prune.language", "prune.total", "prune.sparsity")  # what a plot is drawn along, if it varies
APART = ("model", "evaluate.split")  # what each gets a picture of its own
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito
MARKERS = "osD^vPX*"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """A score over seeds: mean, and what it lies between: the seeds' range, or one seed's interval."""

    value: float
    low: float
    high: float
    seeds: int


def grouped(rows: Sequence[Row], columns: Sequence[str], measurement: str = SCORE) -> dict[tuple[Any, ...], Point]:
    """{(role, value of each column but the seed): its point}, in the order of the table."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["measurement"] == measurement:
            key = (row["role"], *(row[name] for name in columns if name != SEED))
            found.setdefault(key, []).append(row)
    return {key: _point(same) for key, same in found.items()}


def _point(same: Sequence[Row]) -> Point:
    values = [row["value"] for row in same]
    bounds = values if len(values) > 1 else [v for v in (same[0]["low"], same[0]["high"]) if v is not None] or values
    return Point(sum(values) / len(values), min(bounds), max(bounds), len(values))


def table(rows: Sequence[Row], columns: Sequence[str]) -> Table:
    """One row a combination, the seeds together, and a column a model: its score, and what it lies between."""
    points, roles = grouped(rows, columns), ("dense", "pruned", "repaired")
    keys = [(i, name) for i, name in enumerate((n for n in columns if n != SEED), 1)]
    settled = {status: len({r["cell"] for r in rows if r["status"] == status}) for status in ("finished", "failed")}
    failed = f", {settled['failed']} failed" if settled["failed"] else ""
    shown = plain(f"{settled['finished']} of {len({row['cell'] for row in rows})} cells finished{failed}; exact match")
    for _, name in keys:
        shown.add_column(cell(name.rpartition(".")[2]), overflow="fold")
    there = [role for role in roles if any(key[0] == role for key in points)]
    for role in there:
        shown.add_column(role, justify="right", no_wrap=True)
    for values in dict.fromkeys(key[1:] for key in points):
        named = ("" if values[i - 1] is None else cell(values[i - 1]) for i, _ in keys)
        shown.add_row(*named, *(_told(points.get((role, *values))) for role in there))
    return shown


def _told(point: Point | None) -> str:
    return f"{percent(point.value)} ({100 * point.low:.0f}-{100 * point.high:.0f})" if point else ""


def plots(rows: Sequence[Row], columns: Sequence[str], out: Path) -> Iterator[Path]:
    """Draws the score along a key, one line for each combination of the others, as PNG and SVG; gives the PNGs.

    One picture for each value of the keys in `APART`.
    """
    keys = [name for name in columns if name != SEED]
    along = next((name for name in ALONG if _varies(rows, name)), None) or ("variant" if "variant" in keys else None)
    apart = [name for name in APART if name in keys]
    points = grouped(rows, columns)
    for told in dict.fromkeys(tuple(key[1 + keys.index(name)] for name in apart) for key in points):
        mine = {
            key: point
            for key, point in points.items()
            if all(key[1 + keys.index(name)] == value for name, value in zip(apart, told, strict=True))
        }
        path = out / f"{'-'.join([SCORE, *(Path(str(value)).name for value in told)])}.png"
        figure = _figure(mine, keys, along, apart, [str(value) for value in told])
        save(figure, path.with_suffix(".svg"), dpi=120)
        yield save(figure, path, dpi=120)


def _varies(rows: Sequence[Row], name: str) -> bool:
    return len({row[name] for row in rows if row.get(name) is not None}) > 1


def _figure(
    points: Mapping[tuple[Any, ...], Point], keys: list[str], along: str | None, apart: list[str], told: list[str]
) -> Any:
    from matplotlib.figure import Figure  # without pyplot: nothing global, no window

    figure = Figure(figsize=(8.5, 5), facecolor="white", layout="constrained")
    axes = figure.subplots()
    place = 1 + keys.index(along) if along in keys else None
    ticks = _ordered([key[place] for key in points if key[place] is not None] if place else [""])
    for number, (label, line) in enumerate(_lines(points, keys, place, apart).items()):
        style: Any = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "ms": 5}
        where = [ticks.index(value) for value, _ in line]
        values = [point.value for _, point in line]
        between = [[p.value - p.low for _, p in line], [p.high - p.value for _, p in line]]
        shift = 0.04 * (number % 5 - 2)  # so that bars of equal scores do not hide one another
        axes.errorbar([x + shift for x in where], values, between, label=label, capsize=3, lw=1.6, **style)
    axes.set_xticks(range(len(ticks)), [printable(tick) for tick in ticks], parse_math=False)
    if max(map(len, map(str, ticks))) > 8:
        axes.tick_params(axis="x", rotation=35)
    axes.set_xlabel(along or "")
    axes.set_ylabel("exact match")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title(printable(", ".join(told)), parse_math=False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _lines(
    points: Mapping[tuple[Any, ...], Point], keys: list[str], place: int | None, apart: list[str]
) -> dict[str, list[tuple[Any, Point]]]:
    """{name of a line: [(value of the key along which it is drawn, its point)]}; what has no such value is at none."""
    found: dict[str, list[tuple[Any, Point]]] = {}
    others = [i for i, name in enumerate(keys, 1) if i != place and name not in apart]
    drawn = [i for i in others if not _goes_with(points, i, place)]
    for key, point in points.items():
        value = key[place] if place else ""
        if value is None:
            continue
        label = ", ".join(printable(key[i]) for i in (*drawn, 0) if key[i] is not None)
        found.setdefault(label, []).append((value, point))
    return {label: sorted(line, key=lambda at: _number(at[0])) for label, line in found.items()}


def _goes_with(points: Mapping[tuple[Any, ...], Point], i: int, place: int | None) -> bool:
    """Whether key `i` only follows the one along which is drawn, given all others: the second key of a line."""
    if place is None:
        return False
    others = {tuple(v for at, v in enumerate(key) if at != i) for key in points}
    return len(others) == len(points) and len({key[i] for key in points}) > 2


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Each once; shares by their size, N:M where half of the weights stay behind the share that is as large."""
    return sorted(dict.fromkeys(values), key=_number)


def _number(value: Any) -> tuple[float, float]:
    """(sparsity, coarseness), so that 50 %, 4:8 and 2:4 stand in this order; other texts stay as they come."""
    text = str(value)
    kept, _, of = text.partition(":")
    try:
        if of:
            return 1 - float(kept) / float(of), 1 / float(of)
        return (float(text[:-1]) / 100 if text.endswith("%") else float(text)), 0.0
    except ValueError:
        return 2.0, 0.0
