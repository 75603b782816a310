"""What `inspect` found, as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ressa.reporting.table import cell, plain, when

SEEN = {
    "tokens": "seen as tokens of the prompt",
    "pixels": "seen beside the prompt, which holds no tokens of them (another picture changes the logits)",
    None: "none: the model reads text only",
}


def tables(result: dict[str, Any]) -> list[Any]:
    """The same for people."""
    where = [f"{name}: {', '.join(part['modules'])}" for name, part in result["parts"].items()]
    parts = plain(result["model"])
    for header in ("part", "parameters", "blocks", "linears", "weights in them", "zeros now", result["sparsity"]):
        parts.add_column(header, justify="left" if header == "part" else "right", overflow="fold")
    for name, p in result["parts"].items():
        share = f"{p['zeros'] / p['weights']:.1%}" if p["weights"] else ""
        counts = [f"{p[key]:,}" for key in ("parameters", "blocks", "linears", "weights")]
        parts.add_row(cell(name), *counts, share, when(p))
    reasons = plain("not pruned")
    for header in ("why", "how many", "for example"):
        reasons.add_column(header, overflow="fold")
    for why, n in Counter(result["kept"].values()).most_common():
        first = next(name for name, reason in result["kept"].items() if reason == why)
        reasons.add_row(cell(why), str(n), cell(first))
    pictures = f"pictures: {SEEN.get(result['pictures'], result['pictures'])}"
    return [parts, *where, pictures, reasons, *list(result["unfit"].values())[:5]]
