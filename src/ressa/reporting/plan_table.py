"""What `plan` found, as tables for the terminal."""

from __future__ import annotations

from typing import Any

from ressa.files.text import format_bytes
from ressa.reporting.table import plain, when


def tables(result: dict[str, Any]) -> list[Any]:
    """Parts, sizes on disk, what each step takes; then what was assumed, and what to change where one does not fit."""
    a, limit = result["assumed"], result["memory"]
    steps = _table(
        "to do" if limit is None else f"to do in {format_bytes(limit)}", "step", "memory", "one block", "TFLOP", "time"
    )
    if limit is not None:
        steps.add_column("", no_wrap=True)
    for name, row in result["steps"].items():
        steps.add_row(name, *_cells(row), *([] if limit is None else ["fits" if row["fits"] else "does not fit"]))
    assumed = (
        f"{a['samples']} samples of {a['tokens']} tokens and {a['patches']} patches calibrate, {a['batch_size']} at a "
        f"time; repair takes {a['repair_steps']} steps of {a['repair_batch_size']} at rank {a['rank']}"
    )
    first, *_, last = ways = [*result["steps"]["repair"]["ways"].items()]
    shown = (f"{way} {format_bytes(size)}" for way, size in dict([first, ways[1], last]).items())
    repair = f"repair does by itself what memory needs: {'; '.join(shown)}"
    changes = [f"{name} does not fit: {row['change']}" for name, row in result["steps"].items() if row["change"]]
    process = f"in main memory there is the process itself too: {format_bytes(result['process'])}"
    return [_parts(result), _disk(result), steps, assumed, process, repair, *changes]


def _parts(result: dict[str, Any]) -> Any:
    title = f"{result['parameters']:,} parameters in {result['model']}"
    table = _table(title, "part", "parameters", "linears", "weights in them", "of the model", result["sparsity"])
    for name, part in result["parts"].items():
        counts = (f"{part[key]:,}" for key in ("parameters", "linears", "prunable"))
        table.add_row(name, *counts, f"{part['share']:.1%}", when(part))
    return table


def _disk(result: dict[str, Any]) -> Any:
    table = _table("on disk", "dtype", "dense", f"{result['sparsity']} with a bitmask")
    for dtype, sizes in result["disk"].items():
        table.add_row(dtype, format_bytes(sizes["dense"]), format_bytes(sizes["sparse"]))
    return table


def _table(title: str, left: str, *right: str) -> Any:
    table = plain(title)
    table.add_column(left, overflow="fold")
    for header in right:
        table.add_column(header, justify="right", overflow="fold")
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    block = format_bytes(row["device_bytes"]) if "device_bytes" in row else ""
    tera = f"{row['flop'] / 1e12:.3g}" if row["flop"] < 1e15 else f"{row['flop'] / 1e12:,.0f}"
    return [format_bytes(row["bytes"]), block, tera, "" if row["seconds"] is None else clock(row["seconds"])]


def clock(seconds: float) -> str:
    """
    >>> clock(30), clock(90), clock(7200)
    ('30 s', '1.5 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
