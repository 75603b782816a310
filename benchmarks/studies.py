"""The tables and the figure of docs/results.md, from the rows of the shipped studies.

`python benchmarks/studies.py [RESULTS_CSV ...]`: takes the rows of any results.csv that `ressa study` wrote (named as
FOLDER/NAME/results.csv, NAME the study) into benchmarks/results/studies/NAME.csv, a cell once, with the differences
between each cell and the one that its study compares with, on the same questions; and writes what stands between
`<!-- table: NAME -->` and `<!-- end -->` in docs/results.md anew, and docs/results.png.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ressa.evaluation.summary import paired
from ressa.reporting.study import COLOURS, Point, Row, grouped

HERE = Path(__file__).parent
ROWS, PAGE, PICTURE = HERE / "results/studies", HERE.parent / "docs/results.md", HERE.parent / "docs/results.png"
MODELS = ("demo", "emoji-instructblip")
LINES = {"sum 100%": "50%", "sum 120%": "60%", "total 50%": "50%", "total 60%": "60%"}  # of allocation: equal ratios
PAPER = {  # average score of BLIP-2 pruned by Wanda, read from the figures of arXiv 2404.02424 (2.7: 2.6 to 2.8)
    "sum 100%": (0.0, 2.7, 16.5, 41.6, 45.0, 40.2, 30.7, 28.6, 28.3),
    "sum 120%": (0.0, 3.4, 14.7, 34.2, 28.2, 27.8, 27.3),
    "vision and language": (45.0, 40.8, 37.2, 28.7, 4.6),
    "language only": (47.8, 45.2, 44.1, 41.8, 31.5),
    "vision only": (47.1, 45.9, 44.1, 42.3, 16.8),
}
NUMBERS = ("value", "low", "high")
ROLE = {"ablation": "repaired", "allocation": "pruned"}  # studies whose cells are compared with one another
BASE = "exact_match minus base"


def rows_of(name: str) -> list[Row]:
    """The rows of a study with numbers as numbers; what has no value is None."""
    with (ROWS / f"{name}.csv").open(encoding="utf-8") as lines:
        return [row | {n: float(row[n]) if row[n] else None for n in NUMBERS} for row in csv.DictReader(lines)]


def take(file: Path) -> None:
    """Takes the rows of `file` into the study's own table; a cell that is in both is the new one."""
    target = ROWS / f"{file.parent.name}.csv"
    with file.open(encoding="utf-8") as lines:
        new = list(csv.DictReader(lines))
    new = [row for row in new if row["status"] == "finished"]
    old = list(csv.DictReader(target.open(encoding="utf-8"))) if target.is_file() else []
    cells = {_cell(row) for row in new}
    kept = [row for row in old if _cell(row) not in cells] + new
    kept += _against_base(file.parent, new)
    kept.sort(key=lambda row: int(row["seed"]))
    with target.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(new[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def _cell(row: dict[str, str]) -> tuple[str, ...]:
    """What a cell replaces in the recipe."""
    return tuple(
        value for name, value in row.items() if name not in ("cell", "status", "role", "measurement", *NUMBERS)
    )


def _against_base(study: Path, rows: Sequence[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Each cell's paired difference to the cell of its seed and model with equal ratios, or with nothing changed."""
    role = ROLE.get(study.name)
    finished = {r["cell"]: r for r in rows if r["role"] == role and r["measurement"] == "exact_match"}
    same = ("seed", "model", "line")
    bases = {tuple(r.get(k) for k in same): cell for cell, r in finished.items() if _is_base(r)}
    for cell, row in finished.items():
        base = bases.get(tuple(row.get(k) for k in same))
        if base and base != cell:
            ours, theirs = (study / "cells" / one / "scores" / role for one in (cell, base))
            found = paired(ours, theirs)["exact_match"]
            low, high = found["interval"]
            yield row | {"measurement": BASE, "value": str(found["difference"]), "low": str(low), "high": str(high)}


def _is_base(row: dict[str, str]) -> bool:
    return row["prune.vision"] == LINES[row["line"]] if "line" in row else row["variant"] == "whole"


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(headers: Sequence[str], words: int, rows: Iterator[Sequence[str]]) -> str:
    """Markdown: the first `words` columns are text, the others numbers."""
    lines = [headers, [*["---"] * words, *["---:"] * (len(headers) - words)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(point: Point) -> str:
    """With the seeds' range behind it."""
    text = f"{100 * point.value:.1f}"
    return text if point.seeds == 1 else f"{text} ({100 * point.low:.1f} to {100 * point.high:.1f})"


def unique(rows: Sequence[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def differences(rows: Sequence[Row], measurement: str, role: str = "repaired", **where: Any) -> str:
    """Each seed's paired difference, with its interval."""
    where |= {"role": role, "measurement": measurement}
    found = [row for row in rows if row.items() >= where.items()]
    return "; ".join(f"{100 * r['value']:+.1f} ({100 * r['low']:+.1f} to {100 * r['high']:+.1f})" for r in found)


def seconds(name: str) -> str:
    """What a cell takes: all its stages, the dense scores apart."""
    cells: dict[str, float] = {}
    for row in rows_of(name):
        if row["measurement"] in ("seconds", "evaluation_seconds") and row["role"] != "dense":
            cells[row["cell"]] = cells.get(row["cell"], 0.0) + (row["value"] or 0.0)
    one = median(cells.values())
    return f"{len(cells)} cells, {one:.0f} s of one core each (median): {len(cells) * one / 60:.0f} minutes of one core"


def performance() -> str:
    rows = rows_of("performance")
    points = grouped(rows, ["model", "prune.sparsity"])

    def lines() -> Iterator[Sequence[str]]:
        for model in MODELS:
            for pattern in unique(rows, "prune.sparsity"):
                dense, pruned, repaired = (points[role, model, pattern] for role in ("dense", "pruned", "repaired"))
                regained = (repaired.value - pruned.value) / (dense.value - pruned.value)
                paired = differences(rows, "exact_match minus dense", model=model, **{"prune.sparsity": pattern})
                scores = (f"{100 * dense.value:.1f}", percent(pruned), percent(repaired), f"{100 * regained:.0f} %")
                yield (model, pattern, *scores, paired, str(repaired.seeds))

    headers = ("model", "zeros", "dense", "pruned", "repaired", "regained")
    return table((*headers, "repaired minus dense, each seed (95 %, paired)", "seeds"), 2, lines())


def allocation() -> str:
    rows = rows_of("allocation")
    points = grouped(rows, ["model", "line", "prune.vision"])
    return "\n\n".join(f"{_line(points, line)}\n\n{_runners_up(rows, points, line)}" for line in LINES)


def _runners_up(rows: Sequence[Row], points: dict[tuple[Any, ...], Point], line: str) -> str:
    """How far the best of the unequal ratios is from equal ones, seed by seed."""
    texts = []
    for model in MODELS:
        others = {k[3]: p for k, p in points.items() if k[:3] == ("pruned", model, line) and k[3] != LINES[line]}
        best = max(others, key=lambda name: others[name].value)
        apart = differences(rows, BASE, "pruned", model=model, line=line, **{"prune.vision": best})
        texts.append(f"{model}, {best.replace('%', ' %')} in vision: {apart}")
    return f"The best of the others minus equal ratios, each seed (95 %, paired): {'. '.join(texts)}."


def _line(points: dict[tuple[Any, ...], Point], line: str) -> str:
    names = [key[3] for key in points if key[:3] == ("pruned", MODELS[0], line)]
    total = int(line.split()[1].rstrip("%"))

    def lines() -> Iterator[Sequence[str]]:
        for model in MODELS:
            own = [points["pruned", model, line, name] for name in names]
            best = max(own, key=lambda point: point.value)
            yield (model, *(f"**{100 * p.value:.1f}**" if p is best else f"{100 * p.value:.1f}" for p in own))
        if line in PAPER:
            best = max(PAPER[line])
            yield ("paper, BLIP-2", *(f"**{value}**" if value == best else f"{value}" for value in PAPER[line]))

    constant = line.startswith("sum")
    shown = [f"{name.rstrip('%')}:{total - int(name.rstrip('%'))}" if constant else name for name in names]
    headers = ["vision : language" if constant else "vision", *shown]
    return f"{line.capitalize().replace('%', ' %')}:\n\n{table(headers, 1, lines())}"


def modalities() -> str:
    rows = rows_of("modalities")
    points, patterns = grouped(rows, ["variant", "model", "prune.sparsity"]), unique(rows, "prune.sparsity")

    def lines() -> Iterator[Sequence[str]]:
        for model in MODELS:
            for variant in unique(rows, "variant"):
                yield (f"{model}, {variant}", *(percent(points["pruned", variant, model, one]) for one in patterns))
        for variant in unique(rows, "variant"):
            yield (f"paper, BLIP-2, {variant}", *map(str, PAPER[variant]))

    return table(["pruned", *patterns], 1, lines())


def ablation() -> str:
    rows = rows_of("ablation")
    points = grouped(rows, ["variant", "model"])

    def lines() -> Iterator[Sequence[str]]:
        for variant in unique(rows, "variant"):
            if all(("repaired", variant, model) in points for model in MODELS):
                cells = ((percent(points["repaired", variant, m]), apart(variant, m)) for m in MODELS)
                yield (variant, *(text for pair in cells for text in pair))

    def apart(variant: str, model: str) -> str:
        return differences(rows, BASE, variant=variant, model=model)

    columns = (text for model in MODELS for text in (f"{model}, repaired", "minus whole, each seed (95 %, paired)"))
    return table(["changed", *columns], 1, lines())


def transfer() -> str:
    rows = rows_of("transfer")
    splits = unique(rows, "evaluate.split")
    points = grouped(rows, ["variant", "model", "evaluate.split"])

    def lines() -> Iterator[Sequence[str]]:
        for model in MODELS:
            for role in ("dense", "pruned"):
                some = [next(p for k, p in points.items() if k[0] == role and k[2:] == (model, s)) for s in splits]
                yield (model, role, *map(percent, some))
            for variant in unique(rows, "variant"):
                some = [points["repaired", variant, model, split] for split in splits]
                yield (model, f"repaired on {variant}", *map(percent, some))

    names = {"test": "questions", "test_captions": "captions"}
    return table(["model", "", *(f"asked: {names.get(split, split)}" for split in splits)], 2, lines())


TABLES: dict[str, Callable[[], str]] = {
    "performance": performance,
    "allocation": allocation,
    "modalities": modalities,
    "ablation": ablation,
    "transfer": transfer,
}


# ---- the figure ------------------------------------------------------------------------------------------------------


def draw() -> None:
    """How zeros are shared out: at a constant sum of ratios beside the paper's line, and at a constant total."""
    from matplotlib.figure import Figure

    points = grouped(rows_of("allocation"), ["model", "line", "prune.vision"])
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, kind in zip(panels, ("sum", "total"), strict=True):
        for n, (line, model) in enumerate((line, model) for line in LINES if line.startswith(kind) for model in MODELS):
            own = {int(k[3].rstrip("%")): p for k, p in points.items() if k[:3] == ("pruned", model, line)}
            style = "-" if model == MODELS[0] else "--"
            values = [100 * p.value for p in own.values()]
            errors = [[100 * (p.value - p.low) for p in own.values()], [100 * (p.high - p.value) for p in own.values()]]
            label = f"{model}, {line.replace('%', ' %')}"
            panel.errorbar(list(own), values, errors, fmt=f"o{style}", color=COLOURS[n // 2], label=label, capsize=2)
            if model == MODELS[1] and line in PAPER:
                panel.plot(
                    list(own), PAPER[line], "x:", color=COLOURS[n // 2], label=f"paper, {line.replace('%', ' %')}"
                )
        panel.set(xlabel="zeros in vision (%)", ylim=(-2, 105))
        panel.set_title("equal sums of the two sparsities" if kind == "sum" else "equal totals of zeros")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7, loc="upper left", ncols=2)
    panels[0].set_ylabel("exact match (%)")
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    for file in map(Path, sys.argv[1:]):
        take(file)
    page = PAGE.read_text(encoding="utf-8")
    for name, made in TABLES.items():
        if (ROWS / f"{name}.csv").is_file():
            pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
            text = f"{made()}\n\n{seconds(name)}."
            page, count = re.subn(pattern, lambda m, text=text: m[1] + text + m[2], page, flags=re.DOTALL)
            print(f"{name}: {count} table" if count else f"{name}: no marks in {PAGE.name}")
    PAGE.write_text(page, encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
