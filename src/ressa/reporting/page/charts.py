"""Figures as SVG that stands in a page: text is text, colours are the page's, in the light and in the dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ressa.errors import printable
from ressa.reporting.page.collect import Report
from ressa.reporting.page.numbers import Rows, figure_data, metric_name
from ressa.reporting.stored import block_name

INK, LINE = "#010203", "#040506"  # what matplotlib draws with, and the page replaces
SERIES = tuple(f"#0a0b{n:02x}" for n in range(1, 7))
COLOURS = {INK: "currentColor", LINE: "var(--grid)"} | {one: f"var(--c{n})" for n, one in enumerate(SERIES, 1)}
MARKERS, DASHES = "osD^vPX", ("-", "--", "-.", ":")  # 7 and 6 colours: 42 that differ
DOTS = 4  # models in the figure of kinds
SMALL = (4.3, 3.1)  # inches: at 9 points readable on a phone
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ressa",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
} | dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)


def charts(report: Report) -> dict[str, str]:
    """{name: svg} of the figures that the report has numbers for."""
    data = figure_data(report)
    drawn: dict[str, str] = {}
    accuracy = data["accuracy"]
    title = metric_name(accuracy[0]["metric"]) if accuracy else ""
    if len({row["sparsity"] for row in accuracy if row["sparsity"]}) > 1:
        drawn["sparsity"] = _svg("sparsity", lambda axes: _points(axes, accuracy, "sparsity", 100, "zeros (%)", title))
        drawn["bytes"] = _svg("bytes", lambda axes: _points(axes, accuracy, *_size(accuracy), title))
    if data["blocks"]:
        drawn["blocks"] = _svg("blocks", lambda axes: draw_blocks(axes, _by_model(data["blocks"], "block", "error")))
    if data["loss"]:
        drawn["loss"] = _svg("loss", lambda axes: _loss(axes, _by_model(data["loss"], "step", "loss")))
    kinds = list(dict.fromkeys(row["kind"] for row in data["kinds"]))
    if len(kinds) > 1:
        models = _first_run(report)
        few = [row for row in data["kinds"] if row["model"] in models]
        size = (SMALL[0], 0.9 + 0.24 * len(kinds))
        drawn["kinds"] = _svg("kinds", lambda axes: _kinds(axes, few, kinds, title), size)
    return drawn


def _first_run(report: Report) -> list[str]:
    """The dense model and those of one run: dots of more could not be told apart."""
    alike = report.asked_alike()
    run = next((model.run for model in alike if model.role != "dense"), "")
    return [model.name for model in alike if model.role == "dense" or model.run == run][:DOTS]


def _size(rows: Rows) -> tuple[str, float, str]:
    """Bytes on disk where they differ, else what they would come to without the zeros."""
    same = len({row["bytes"] for row in rows if row["bytes"]}) < 2
    return ("packed", 1e-6, "MB with zeros packed (computed)") if same else ("bytes", 1e-6, "MB on disk")


def _svg(name: str, draw: Callable[[Any], None], size: tuple[float, float] = SMALL) -> str:
    """What `draw` draws on axes, as an <svg> whose ids are its own."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = io.StringIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font at hand lacks: the reader's has them
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" aria-labelledby="t-NAME">', text
    )
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace('aria-labelledby="t-NAME"', f'aria-labelledby="t-{name}"')
    text = re.sub(r'(<[a-zA-Z]+ id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1sans-serif", text)
    for drawn, shown in COLOURS.items():
        text = text.replace(drawn, shown)
    return re.sub(r"\s*\n\s*", "\n", text)


def _line(axes: Any, n: int, x: Sequence[float], y: Sequence[float], label: str, **more: Any) -> None:
    """A series that differs from its neighbours in colour, marker and dashes."""
    look: dict[str, Any] = {"color": SERIES[n % len(SERIES)], "marker": MARKERS[n % len(MARKERS)], "markersize": 4.5}
    look |= {"linestyle": DASHES[n // len(SERIES) % len(DASHES)], "linewidth": 1.4}
    axes.plot(x, y, label=printable(label), **look | more)


def _points(axes: Any, rows: Rows, key: str, scale: float, label: str, metric: str) -> None:
    """Scores with their intervals, a line a series; the dense score goes through."""
    names = sorted({row["series"] for row in rows} - {"dense"}, key=lambda name: ("N:M" in name, name))
    for n, name in enumerate(names):
        mine = sorted((r for r in rows if r["series"] == name and r[key] is not None), key=lambda r: r[key])
        x, y = [scale * row[key] for row in mine], [100 * row["score"] for row in mine]
        _line(axes, n, x, y, name)
        for at, row in zip(x, mine, strict=True):
            if row["low"] is not None:
                axes.plot([at, at], [100 * row["low"], 100 * row["high"]], color=SERIES[n % len(SERIES)], linewidth=0.8)
    for row in [row for row in rows if row["series"] == "dense"][:1]:
        axes.axhline(100 * row["score"], color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label="dense")
    axes.set(xlabel=label, ylabel=f"{metric} (%)")
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
    _tidy(axes)


def draw_blocks(axes: Any, errors: dict[str, tuple[list[str], list[float]]]) -> None:
    """{model: (blocks, relative squared error of each block's output)}, in the order of the forward pass."""
    names = max((blocks for blocks, _ in errors.values()), key=len)
    for n, (model, (blocks, values)) in enumerate(errors.items()):
        _line(axes, n, [names.index(block) for block in blocks if block in names], values[: len(blocks)], model)
    _log(axes)
    step = max(1, len(names) // 16)
    axes.set_xticks(range(0, len(names), step), [block_name(name) for name in names[::step]], rotation=60, ha="right")
    axes.set_ylabel("relative squared error")
    _tidy(axes)


def _loss(axes: Any, curves: dict[str, tuple[list[Any], list[float]]]) -> None:
    for n, (model, (steps, values)) in enumerate(curves.items()):
        _line(axes, n, steps, values, model, markevery=max(1, len(steps) // 8))
    _log(axes)
    axes.set(xlabel="step", ylabel="training loss")
    _tidy(axes)


def _kinds(axes: Any, rows: Rows, kinds: list[str], metric: str) -> None:
    """A row a kind, a mark a model."""
    for n, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        mine = [row for row in rows if row["model"] == model and row["score"] is not None]
        y = [kinds.index(row["kind"]) for row in mine]
        _line(axes, n, [100 * row["score"] for row in mine], y, model, linestyle="")
    axes.set_yticks(range(len(kinds)), [printable(kind) for kind in kinds])
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric} (%)")
    _tidy(axes)


def _log(axes: Any) -> None:
    """A logarithmic axis with plain numbers at it."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _tidy(axes: Any) -> None:
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        place = {"loc": "outside upper left", "ncols": 2 if max(map(len, labels)) < 20 else 1}
        axes.figure.legend(handles[:12], labels[:12], fontsize=8.5, **place)


def _by_model(rows: Rows, x: str, y: str) -> dict[str, tuple[list[Any], list[float]]]:
    found: dict[str, tuple[list[Any], list[float]]] = {}
    for row in rows:
        xs, ys = found.setdefault(row["model"], ([], []))
        xs.append(row[x])
        ys.append(row[y])
    return found
