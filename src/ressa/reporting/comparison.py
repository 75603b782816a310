"""What `compare` found: a table for the terminal, and a plot of every block's error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.table import Table

from ressa.errors import check_extra, printable
from ressa.reporting.figure import save
from ressa.reporting.stored import block_name
from ressa.reporting.table import plain


def table(comparison: dict[str, Any]) -> Table:
    """One row a method: score, points lost, KL, the blocks' error (geometric mean and last block), time, memory."""
    shown = plain(f"{comparison['model']} at {comparison['sparsity']} (dense: {comparison['dense']:.1%})")
    shown.add_column("method", no_wrap=True)
    for header in (
        "exact\nmatch",
        "points\nlost",
        "KL to\ndense",
        "block\nerror",
        "last\nblock",
        "seconds",
        "peak\nMB",
    ):
        shown.add_column(header, justify="right")
    for name, result in comparison["methods"].items():
        errors = list(result["blocks"].values())
        shown.add_row(
            name,
            f"{result['exact_match']:.1%}",
            f"{100 * (comparison['dense'] - result['exact_match']):.1f}",
            f"{result['kl']:.3f}",
            f"{geometric_mean(errors):.4f}",
            f"{errors[-1]:.4f}",
            f"{result['seconds']:.1f}",
            f"{result['peak_memory_bytes'] / 1e6:.0f}",
        )
    return shown


def geometric_mean(errors: list[float]) -> float:
    """0 if one of them is 0 (nothing was pruned there)."""
    return math.exp(sum(map(math.log, errors)) / len(errors)) if errors and min(errors) > 0 else 0.0


def plot(comparison: dict[str, Any], path: str | Path) -> Path:
    """Draws the relative output error of every block, one line a method, in the order of the forward pass."""
    check_extra("report", "matplotlib")
    from matplotlib.figure import Figure  # without pyplot: nothing global, no window

    figure = Figure(figsize=(9, 4.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    names = list(next(iter(comparison["methods"].values()))["blocks"])
    for method, result in comparison["methods"].items():
        label = f"{method}   {result['exact_match']:.1%}, KL {result['kl']:.3f}"
        axes.plot(range(len(names)), [result["blocks"][name] for name in names], marker="o", markersize=4, label=label)
    axes.set_yscale("log")
    axes.set_xticks(
        range(len(names)),
        list(map(block_name, names)),
        rotation=60,
        ha="right",
        fontsize=8,
        parse_math=False,
    )
    axes.set_ylabel("relative squared error of the block's output")
    model = Path(comparison["model"]).name or comparison["model"]
    title = f"{model} at {comparison['sparsity']}: exact match {comparison['dense']:.1%} when dense"
    axes.set_title(printable(title), parse_math=False)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=9)
    return save(figure, path, dpi=120)
