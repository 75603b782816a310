"""What `bench` measured: a table for the terminal, what pays and what does not in plain sentences, and a plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from ressa.errors import check_extra, printable
from ressa.files.text import format_bytes
from ressa.reporting.figure import save
from ressa.reporting.table import cell, plain

EVEN = 1.05  # a ratio nearer to 1 is no difference


def table(result: dict[str, Any]) -> Table:
    """One row a model: bytes, seconds, tokens per second (below, how many times those of the dense one), the bound."""
    machine = result["machine"]
    first = next(iter(result["models"].values()))
    batches = list(first["tokens_per_second"])
    shown = plain(f"{machine['processor']}, {machine['device']}, {machine['compute']}, {machine['threads']} threads")
    shown.add_column("model", no_wrap=True)
    headers = ["on\ndisk", "in\nRAM", "peak\nmemory", "load\ns", f"prefill\ns, {first['prompt_tokens']}"]
    for header in (*headers, *(f"tok/s\nbatch {batch}" for batch in batches), "bound"):
        shown.add_column(header, justify="right")
    dense = result["models"].get(result["against"])
    for name, model in result["models"].items():
        sizes = (model["disk_bytes"], model["parameter_bytes"], model["peak_bytes"]["median"])
        times = (model[key]["median"] for key in ("load_seconds", "prefill_seconds"))
        rates = (_rate(model, dense, batch) for batch in batches)
        shown.add_row(
            cell(name), *map(format_bytes, sizes), *(f"{t:.3g}" for t in times), *rates, f"{model['bound']:.2f} x"
        )
    return shown


def _rate(model: dict[str, Any], dense: dict[str, Any] | None, batch: str) -> str:
    rate = model["tokens_per_second"][batch]["median"]
    if dense is None or dense is model:
        return f"{rate:.3g}"
    return f"{rate:.3g}\n{rate / dense['tokens_per_second'][batch]['median']:.2f} x"


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Of each model but the dense one where it pays, where it makes no difference, and where it does not pay."""
    against = result["against"]
    for name in result["models"] if against else ():
        if name == against:
            continue
        kinds: dict[str, list[str]] = {"pays": [], "no clear difference": [], "does not pay": []}
        for what, gain, clear in gains(result["models"][name], result["models"][against]):
            judged = "pays" if gain > EVEN else "does not pay" if gain < 1 / EVEN else "no clear difference"
            kinds[judged if clear else "no clear difference"].append(f"{what} ({gain:.2f} x)")
        found = "; ".join(f"{kind} in {', '.join(entries)}" for kind, entries in kinds.items() if entries)
        yield f"{name}, beside {against}: {found}"


def gains(model: dict[str, Any], dense: dict[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """(what, how many times better than dense, whether no repetition of one reaches into those of the other)."""
    yield "bytes on disk", dense["disk_bytes"] / model["disk_bytes"], True
    yield "bytes in RAM", dense["parameter_bytes"] / model["parameter_bytes"], True
    pairs = [("peak memory", "peak_bytes"), ("loading", "load_seconds"), ("prefill", "prefill_seconds")]
    for what, key in pairs:
        yield what, dense[key]["median"] / model[key]["median"], _apart(model[key], dense[key])
    for batch, rate in model["tokens_per_second"].items():
        theirs = dense["tokens_per_second"][batch]
        yield f"decode at batch {batch}", rate["median"] / theirs["median"], _apart(rate, theirs)


def _apart(one: dict[str, float], other: dict[str, float]) -> bool:
    return one["min"] > other["max"] or other["min"] > one["max"]


def plot(result: dict[str, Any], path: str | Path) -> Path:
    """Tokens per second at each batch size, with the spread of the repetitions, and the bytes in RAM, as a PNG."""
    check_extra("report", "matplotlib")
    from matplotlib.figure import Figure  # without pyplot: nothing global, no window

    models = result["models"]
    names, places = [printable(name) for name in models], range(len(models))
    batches = list(next(iter(models.values()))["tokens_per_second"])
    figure = Figure(figsize=(4 * (len(batches) + 1), 1.6 + 0.45 * len(names)), layout="constrained", facecolor="white")
    for place, batch in enumerate(batches, 1):
        rates = [model["tokens_per_second"][batch] for model in models.values()]
        axes = figure.add_subplot(1, len(batches) + 1, place)
        spread = [[r["median"] - r["min"] for r in rates], [r["max"] - r["median"] for r in rates]]
        axes.barh(places, [rate["median"] for rate in rates], xerr=spread, capsize=3)
        axes.set_title(f"tokens per second, batch {batch}")
    axes = figure.add_subplot(1, len(batches) + 1, len(batches) + 1)
    axes.barh(places, [model["parameter_bytes"] / 2**20 for model in models.values()], color="tab:grey")
    axes.set_title("parameters in RAM (MiB)")
    for axes in figure.axes:
        axes.set_yticks(places, names if axes is figure.axes[0] else [""] * len(names), parse_math=False)
        axes.invert_yaxis()
    return save(figure, path, dpi=120)
