"""benchmarks/results/ideas.md, from the cells that benchmarks/ideas.py has computed: one table for each idea."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from ideas_words import ABOUT, IDEAS, UNRUN

from ressa.tasks.metrics.intervals import Measured, compared

RESULTS = Path(__file__).parent / "results" / "ideas.md"
TEXTS = {"workshop": "the workshop's end", "alice": "Alice's end"}
SIDES: tuple[tuple[str, Any, str], ...] = (
    ("Captions, 300, which no calibration record shows:", lambda found, tuned: found, "test_captions"),
    ("On 400 validation questions, by which settings were chosen:", lambda found, tuned: tuned, "validation"),
)
Key = tuple[str, str, str]  # model, sparsity, method


@dataclass(frozen=True)
class Idea:
    """A title, what was tried, the verdict, and the variants to show; differences are from the first of them."""

    title: str
    text: str
    verdict: str
    variants: tuple[str, ...]
    names: tuple[str, ...]


def read(folder: Path) -> dict[Key, dict[str, dict[int, dict[str, Any]]]]:
    """{(model, sparsity, method): {variant: {seed: cell}}}."""
    found: dict[Key, dict[str, dict[int, dict[str, Any]]]] = {}
    for file in sorted(folder.glob("*.json")):
        cell = json.loads(file.read_text())
        key = (cell["model"], cell["sparsity"], cell["method"])
        found.setdefault(key, {}).setdefault(cell["variant"], {})[cell["seed"]] = cell
    return found


def ratio(means: np.ndarray) -> np.ndarray:
    return means[..., 0] / means[..., 1]


def measured(cells: Sequence[dict[str, Any]], part: str, what: str) -> Measured:
    """A question's (or window's) sums, meaned over the seeds."""
    sums = np.mean([cell[part][what] for cell in cells], axis=0)
    per = np.ones(len(sums)) if what == "right" else np.array(cells[0][part]["tokens"], dtype=float)
    return Measured(np.stack([sums, per], axis=1), ratio)


def difference(ours: Measured, base: Measured, form: Any) -> str:
    told = compared(ours, base)
    low, high = told["interval"]
    return f"{form(told['difference'])} [{form(low)}, {form(high)}]"


def row(key: Key, name: str, ours: dict[int, Any], base: dict[int, Any], part: str) -> str:
    """Of an embedded model: KL and exact match, on the seeds that the base has too, each beside the base's."""
    seeds = [seed for seed in sorted(ours.keys() & base.keys()) if part in ours[seed] and part in base[seed]]
    if not seeds:
        return ""
    mine, theirs = [ours[seed] for seed in seeds], [base[seed] for seed in seeds]
    cells = [*key, name, str(len(seeds))]
    for what, form in (("kl", lambda x: f"{x:+.3f}"), ("right", lambda x: f"{100 * x:+.1f}")):
        value = measured(mine, part, what).value
        cells.append(f"{value:.3f}" if what == "kl" else f"{100 * value:.1f}")
        cells.append("" if ours is base else difference(measured(mine, part, what), measured(theirs, part, what), form))
    cells.append(f"{np.mean([cell['seconds'] for cell in mine]):.1f}")
    return "| " + " | ".join(cells) + " |"


def text_row(key: Key, name: str, ours: dict[int, Any], base: dict[int, Any]) -> str:
    """Of SmolLM2: perplexity of either text, and how many times the base's it is."""
    seeds = sorted(ours.keys() & base.keys())
    mine, theirs = [ours[seed] for seed in seeds], [base[seed] for seed in seeds]
    cells = [*key[1:], name]
    for text in TEXTS:
        cells.append(f"{exp(measured(mine, text, 'nll').value):.1f}")
        form = lambda x: f"{exp(x):.2f}"  # noqa: E731
        pair = measured(mine, text, "nll"), measured(theirs, text, "nll")
        cells.append("" if ours is base else difference(*pair, form))
    return "| " + " | ".join([*cells, f"{np.mean([cell['seconds'] for cell in mine]):.0f}"]) + " |"


def tables(found: dict[Key, Any], idea: Idea, part: str) -> str:
    head = "| model | zeros | method | variant | seeds | KL | against the first | exact match | against the first | s |"
    rows, texts = [], []
    for key, variants in sorted(found.items()):
        shown = [pair for pair in zip(idea.variants, idea.names, strict=True) if pair[0] in variants]
        base = variants.get(idea.variants[0])
        if base is None or len(shown) < 2:
            continue
        if key[0] != "smollm2":
            made = [row(key, name, variants[variant], base, part) for variant, name in shown]
            rows += [line for line in made if line] if sum(map(bool, made)) > 1 else []
        elif part == "test":
            texts += [text_row(key, name, variants[variant], base) for variant, name in shown]
    parts = ["\n".join([head, "|---|---|---|---|" + "---:|" * 6, *rows])] if rows else []
    if texts:
        columns = "".join(f" {words} | times the first |" for words in TEXTS.values())
        parts.append("\n".join([f"| zeros | method | variant |{columns} s |", "|---|---|---|" + "---:|" * 5, *texts]))
    return "\n\n".join(parts)


def write_page(work: Path) -> None:
    found, tuned = read(work / "cells"), read(work / "tuned")
    if not found:
        return
    any_cell = next(iter(next(iter(next(iter(found.values())).values())).values()))
    about = ABOUT.format(date=datetime.date.today(), processor=any_cell["processor"], **any_cell["versions"])
    parts = ["# Four ideas, tried", about]
    for told in IDEAS:
        idea = Idea(**told)
        parts += [f"## {idea.title}", idea.text, f"**{idea.verdict}**", tables(found, idea, "test")]
        for words, cells, part in SIDES:
            if table := tables(cells(found, tuned), idea, part):
                parts += [words, table]
    parts += ["## Not run", UNRUN]
    RESULTS.write_text("\n\n".join(part for part in parts if part) + "\n")
