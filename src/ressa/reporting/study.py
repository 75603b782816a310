"""What a study came to: a table for the terminal, and plots of its score along one of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from ressa.errors import printable
from ressa.reporting.figure import save
from ressa.reporting.table import cell, percent, plain

SCORE, SEED, DENSE = "exact_match", "seed", "dense"
ALONG = ("prune.sparsity", "prune.total", "variant")  # what a plot is drawn along, if it varies: the first of them
APART = ("model", "evaluate.split")  # what each gets a picture of its own
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito
MARKERS = "osD^vPX*"
Row = Mapping[str, Any]
Points = Mapping[tuple[Any, ...], "Point"]


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
    points = grouped(rows, columns)
    settled = {status: len({r["cell"] for r in rows if r["status"] == status}) for status in ("finished", "failed")}
    failed = f", {settled['failed']} failed" if settled["failed"] else ""
    shown = plain(f"{settled['finished']} of {len({row['cell'] for row in rows})} cells finished{failed}; exact match")
    shown.add_column(cell(", ".join(n.rpartition(".")[2] for n in columns if n != SEED)), overflow="fold")
    there = [role for role in (DENSE, "pruned", "repaired") if any(key[0] == role for key in points)]
    for role in there:
        shown.add_column(role, justify="right", no_wrap=True)
    for values in dict.fromkeys(key[1:] for key in points):
        named = cell(", ".join(str(value) for value in values if value is not None))
        shown.add_row(named, *(_point_text(points.get((role, *values))) for role in there))
    return shown


def _point_text(point: Point | None) -> str:
    return f"{percent(point.value)} ({100 * point.low:.0f}-{100 * point.high:.0f})" if point else ""


def plots(rows: Sequence[Row], columns: Sequence[str], out: Path) -> Iterator[Path]:
    """Draws the score along a key, one line for each combination of the others, as PNG and SVG; gives the PNGs.

    One picture for each value of the keys in `APART`.
    """
    points, keys = grouped(rows, columns), [name for name in columns if name != SEED]
    apart = [1 + keys.index(name) for name in APART if name in keys]
    for values in dict.fromkeys(tuple(key[i] for i in apart) for key in points):
        mine = {key: point for key, point in points.items() if tuple(key[i] for i in apart) == values}
        names = [Path(str(value)).name for value in values]
        path = out / f"{'-'.join([SCORE, *names])}.png"
        figure = _figure(_lines(mine, keys), _along(keys) or "", ", ".join(names))
        save(figure, path.with_suffix(".svg"), dpi=120)
        yield save(figure, path, dpi=120)


def _along(keys: Sequence[str]) -> str | None:
    """What a plot is drawn along: the first key of the lines, which stands behind their name; or the sparsity."""
    first = keys[keys.index("line") + 1] if "line" in keys else ""
    return next((name for name in (first, *ALONG) if name in keys), None)


def _lines(points: Points, keys: Sequence[str]) -> dict[str, list[tuple[Any, Point]]]:
    """{name of a line: [(value of the key along which is drawn, its point)]}.

    What a line of the study holds besides, its name says; a dense model that is the same everywhere is one line.
    """
    along = _along(keys)
    place = 1 + keys.index(along) if along else None
    named = keys[: keys.index("line") + 1] if "line" in keys else keys
    labelled = [i for i, name in enumerate(named, 1) if i != place and name not in APART]
    dense = {point.value for key, point in points.items() if key[0] == DENSE}
    found: dict[str, list[tuple[Any, Point]]] = {}
    for key, point in points.items():
        label = ", ".join(printable(key[i]) for i in (*labelled, 0) if key[i] is not None)
        label = DENSE if key[0] == DENSE and len(dense) == 1 else label
        found.setdefault(label, []).append((key[place] if place else "", point))
    return {label: [at for at in line if at[0] is not None] for label, line in found.items()}


def _figure(lines: Mapping[str, Sequence[tuple[Any, Point]]], along: str, title: str) -> Any:
    from matplotlib.figure import Figure  # without pyplot: nothing global, no window

    figure = Figure(figsize=(9, 5), facecolor="white", layout="constrained")
    axes = figure.subplots()
    places = _places([value for line in lines.values() for value, _ in line])
    gap = min((b - a for a, b in pairwise(sorted(places.values()))), default=1.0)
    for number, (label, line) in enumerate(lines.items()):
        if label == DENSE:
            axes.axhline(line[0][1].value, label=label, color="#777777", lw=1.2, ls="--")
            continue
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "label": label}
        style["ls"] = "" if along == "variant" else "-"  # variants have no order, so nothing lies between them
        _draw(axes, sorted(line, key=lambda at: places[at[0]]), places, gap * 0.04 * (number % 5 - 2), style)
    axes.set_xticks([*places.values()], [printable(tick) for tick in places], parse_math=False)
    if max(len(str(tick)) for tick in places) > 8:
        axes.tick_params(axis="x", rotation=35)
    axes.set_xlabel(printable(along), parse_math=False)
    axes.set_ylabel(SCORE.replace("_", " "))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title(printable(title), parse_math=False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _draw(
    axes: Any, line: Sequence[tuple[Any, Point]], places: Mapping[Any, float], aside: float, style: Mapping[str, Any]
) -> None:
    """One line with its bars, a little aside, so that those of equal scores do not hide one another."""
    values = [point.value for _, point in line]
    between = [[p.value - p.low for _, p in line], [p.high - p.value for _, p in line]]
    axes.errorbar([places[x] + aside for x, _ in line], values, between, capsize=3, ms=5, lw=1.6, **style)


def _places(values: Sequence[Any]) -> dict[Any, float]:
    """{value: where it stands}, in order. Shares stand at their size, anything else at equal distances."""
    sizes = {value: _size(value) for value in values}
    ordered = sorted(sizes, key=lambda value: sizes[value])
    scaled = all(size[0] <= 1 and not size[1] for size in sizes.values())
    return {value: sizes[value][0] if scaled else float(i) for i, value in enumerate(ordered)}


def _size(value: Any) -> tuple[float, float]:
    """(sparsity, coarseness), so that 50 %, 4:8 and 2:4 stand in this order; other texts stay as they come."""
    text = str(value)
    kept, _, of = text.partition(":")
    try:
        if of:
            return 1 - float(kept) / float(of), 1 / float(of)
        return (float(text[:-1]) / 100 if text.endswith("%") else float(text)), 0.0
    except ValueError:
        return 2.0, 0.0
