"""What each way of repair regains, over methods, sparsities and seeds: `python benchmarks/repair.py WORK`.

    python benchmarks/repair.py WORK --plan                 # the runs that are left, and the hours they will take
    python benchmarks/repair.py WORK --budget 300           # starts no run after 300 minutes
    python benchmarks/repair.py WORK --models demo FOLDER   # other dense models, each with the same runs

A run is a dense model, a pruning method, a sparsity, a seed and a column: nothing, or a way to repair. Its result is
one JSON file in benchmarks/results/repair/, written when it is finished; a run whose file is there is not run again,
so results can be committed and continued on another day or machine. WORK keeps data and pruned models. Tables and plot,
benchmarks/results/repair.md and repair.png, are made anew after every run (by `--budget 0` alone).

All columns see the same 6,400 samples once (block reconstruction sees them once more before). {Wanda, ADMM} x {2:4,
70 %} have three seeds, the rest of the grid one. Wanda at 60 % is there because it about halves the accuracy. The
connector is trained too but in one column, the default of today, which has these seeds alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from transformers.utils import logging

import ressa
from ressa.data.emoji import write

RESULTS = Path(__file__).parent / "results"
SAMPLES, BATCH = 6400, 16
METHODS = ("wanda", "sparsegpt", "admm")
SPARSITIES = ("50%", "4:8", "2:4", "70%")
HALVES = ("wanda", "60%")
THREE_SEEDS = [("wanda", "2:4"), ("admm", "2:4"), ("wanda", "70%"), ("admm", "70%")]

# Chosen on the validation split, and the defaults when these columns were run, but for the connector: it is left today
OURS: dict = {"train_connector": True}
TODAY = "connector left (default)"
COLUMNS: dict[str, dict | None] = {
    "pruned": None,
    "both losses (RESSA)": OURS,
    TODAY: {},
    "paper": {"objective": "paper"},
    "task loss only": OURS | {"kl_weight": 0.0, "hidden_weight": 0.0},
    "distillation only": OURS | {"kl_weight": 1.0},
    "dense LoRA, unmerged": OURS | {"adapter": "lora"},
    "reconstruction first": OURS | {"reconstruct": 1},
    "masked fine-tuning": OURS | {"adapter": "masked-ft", "lr": 5e-4},
    "straight-through": OURS | {"adapter": "ste"},
}
EXTRA = ("masked fine-tuning", "straight-through")  # neighbours, at 2:4 by Wanda alone
EARLY = ("pruned", "both losses (RESSA)", TODAY, "paper")  # run before all other columns
DRAWN = {  # what the plot shows, and how
    "pruned": ("x", "tab:gray"),
    "paper": ("s", "tab:orange"),
    "task loss only": ("<", "tab:green"),
    "distillation only": (">", "tab:purple"),
    "both losses (RESSA)": ("o", "tab:blue"),
}
SLOWEST = "reconstruction first"
# Minutes of a run on one core, until one of its column has been measured
GUESS = {"pruned": 0.2, SLOWEST: 3.0}
OTHERS = 1.2


@dataclass(frozen=True)
class Cell:
    """One run."""

    model: str
    method: str
    sparsity: str
    seed: int
    column: str

    @property
    def name(self) -> str:
        words = (Path(self.model).name, self.method, self.sparsity, str(self.seed), self.column)
        return "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)


@dataclass(frozen=True)
class Place:
    """Where things lie, and how large runs are."""

    work: Path
    results: Path
    samples: int
    batch: int
    limit: int | None
    bf16: bool

    def file(self, cell: Cell) -> Path:
        return self.results / "repair" / f"{cell.name}.json"

    def result(self, cell: Cell) -> dict | None:
        file = self.file(cell)
        return json.loads(file.read_text()) if file.is_file() else None


def cells(models: list[str]) -> list[Cell]:
    """All runs, the ones that matter most first: one seed before three, what takes longest last."""
    grid = [(m, s) for s in ("2:4", "70%", "50%", "4:8") for m in METHODS]
    first = [*THREE_SEEDS, HALVES]
    groups = [(0, pair) for pair in first]
    groups += [(seed, pair) for pair in THREE_SEEDS for seed in (1, 2)]
    groups += [(0, pair) for pair in grid if pair not in first]
    every = [
        Cell(model, method, sparsity, seed, column)
        for (seed, (method, sparsity)), model, column in product(groups, models, COLUMNS)
        if column not in EXTRA or (method, sparsity) == ("wanda", "2:4")
        if column != TODAY or (method, sparsity) in THREE_SEEDS
    ]
    return sorted(every, key=lambda cell: (cell.column not in EARLY, cell.seed > 0, cell.column == SLOWEST))


def pruned(place: Place, cell: Cell) -> Path:
    out = place.work / "pruned" / Cell(cell.model, cell.method, cell.sparsity, cell.seed, "").name
    if not out.exists():
        data = place.work / "data"
        ressa.prune(cell.model, out, data=data, method=cell.method, sparsity=cell.sparsity, seed=cell.seed)
    return out


def run(place: Place, cell: Cell) -> dict:
    """Prune (once for all columns), repair, ask; the result as it is kept."""
    folder, started, data = pruned(place, cell), time.perf_counter(), place.work / "data"
    out, told = place.work / "repaired" / cell.name, {}
    settings = COLUMNS[cell.column]
    if settings is not None:
        common = {"teacher": cell.model, "data": data, "samples": place.samples, "batch_size": place.batch}
        if out.exists():
            shutil.rmtree(out)  # written, but not asked before it was stopped
        told = ressa.repair(folder, out, seed=cell.seed, bf16=place.bf16, **common, **settings)
        folder = out
    scores = ressa.evaluate(folder, data=data, against=cell.model, limit=place.limit, batch_size=64)
    kept = {name: scores[name] for name in ("exact_match", "vqa_accuracy", "kl", "n")}
    kept |= {"cell": vars(cell), "settings": settings, "samples": place.samples, "batch": place.batch}
    kept |= {"seconds": round(time.perf_counter() - started, 1), "date": str(datetime.date.today())}
    kept |= {"steps": told.get("steps"), "trained_parameters": told.get("trained_parameters")}
    kept |= {"versions": {name: version(name) for name in ("ressa", "torch", "transformers", "peft")}}
    shutil.rmtree(out, ignore_errors=True)
    return kept


def dense(place: Place, model: str) -> dict:
    file = place.results / "repair" / f"{Cell(model, 'dense', '', 0, '').name}.json"
    if not file.is_file():
        scores = ressa.evaluate(model, data=place.work / "data", limit=place.limit, batch_size=64)
        keep(file, {name: scores[name] for name in ("exact_match", "vqa_accuracy", "n")})
    return json.loads(file.read_text())


def keep(file: Path, result: dict) -> None:
    """The file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, file)


def minutes(place: Place, todo: list[Cell], done: list[Cell]) -> dict[Cell, float]:
    """What each run will take: the median of finished ones of its column on its model, else a guess."""
    taken: dict[tuple[str, str], list[float]] = {}
    for cell in done:
        taken.setdefault((cell.model, cell.column), []).append(place.result(cell)["seconds"] / 60)
    return {
        cell: statistics.median(taken.get((cell.model, cell.column), [GUESS.get(cell.column, OTHERS)])) for cell in todo
    }


def tables(place: Place, models: list[str]) -> str:
    told = f"{datetime.date.today()}, {platform.machine()}, CPU, threads a run: {torch.get_num_threads()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("ressa", "torch", "transformers", "peft"))
    lines = [
        "# What repair regains",
        "",
        f"{told}, {versions}. Vision and language pruned with 128 calibration records. Every repair sees the same "
        f"{place.samples} samples once, {place.batch} a step. Exact match on {place.limit or 'all'} test questions (KL "
        "to dense in nats; share regained of what pruning lost); mean and spread (largest minus smallest) where there "
        "are several seeds. What is empty was not run.",
    ]
    every = cells(models)
    for model in models:
        base = dense(place, model)["exact_match"]
        lines += ["", f"## {Path(model).name}: dense {base:.1%}", ""]
        lines += ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
        for method, sparsity in pairs(models):
            runs = [cell for cell in every if (cell.model, cell.method, cell.sparsity) == (model, method, sparsity)]
            row = [_shown(place, runs, column, base) for column in COLUMNS]
            lines.append(f"| {method} {sparsity} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def pairs(models: list[str]) -> list[tuple[str, str]]:
    """Methods and sparsities, in the order of the tables."""
    found = dict.fromkeys((cell.method, cell.sparsity) for cell in cells(models))
    return sorted(found, key=lambda pair: (METHODS.index(pair[0]), pair[1]))


def plot(place: Place, models: list[str]) -> None:
    """One panel a model: what stands on each line of its table, as points on a line (seeds as a bar behind it)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), facecolor="white", layout="constrained")
    rows = pairs(models)[::-1]
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        base, every = dense(place, model)["exact_match"], cells([model])
        axes.axvline(100 * base, color="black", linewidth=1, linestyle=":", label="dense")
        for column, (marker, colour) in DRAWN.items():
            for y, (method, sparsity) in enumerate(rows):
                runs = [c for c in every if (c.method, c.sparsity, c.column) == (method, sparsity, column)]
                scores = [100 * result["exact_match"] for cell in runs if (result := place.result(cell))]
                if scores:
                    axes.plot([min(scores), max(scores)], [y, y], color=colour, linewidth=6, alpha=0.3)
                    axes.plot(statistics.mean(scores), y, marker, color=colour, label=None if y else column)
        axes.set_title(f"{Path(model).name}: dense {base:.1%}")
        axes.set_xlabel("exact match, %")
        axes.set_yticks(range(len(rows)), [" ".join(row) for row in rows])
        axes.grid(alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(DRAWN) + 1
    )
    figure.savefig(place.results / "repair.png", dpi=110)


def show(place: Place, models: list[str]) -> None:
    (place.results / "repair.md").write_text(tables(place, models))
    plot(place, models)


def _shown(place: Place, runs: list[Cell], column: str, base: float) -> str:
    found = [result for cell in runs if cell.column == column and (result := place.result(cell))]
    bare = [cell for cell in runs if cell.column == "pruned"]
    if not found:
        return ""
    scores, kl = [r["exact_match"] for r in found], statistics.mean(r["kl"] for r in found)
    shown = f"{statistics.mean(scores):.1%}" + (f" ± {max(scores) - min(scores):.1%}" if len(found) > 1 else "")
    lost = [base - result["exact_match"] for cell in bare if (result := place.result(cell))]
    if column == "pruned" or not lost or statistics.mean(lost) <= 0:
        return f"{shown} (KL {kl:.3f})"
    regained = 1 - (base - statistics.mean(scores)) / statistics.mean(lost)
    return f"{shown} (KL {kl:.3f}; {regained:.0%})"


def plan(place: Place, models: list[str]) -> tuple[list[Cell], dict[Cell, float]]:
    """Runs that are left, and their minutes."""
    every = cells(models)
    todo = [cell for cell in every if place.result(cell) is None]
    return todo, minutes(place, todo, [cell for cell in every if cell not in set(todo)])


def show_plan(place: Place, models: list[str]) -> None:
    todo, each = plan(place, models)
    total = 0.0
    for cell in todo:
        total += each[cell]
        words = f"{Path(cell.model).name} {cell.method} {cell.sparsity} seed {cell.seed}: {cell.column}"
        print(f"{total / 60:6.2f} h  {words}")
    print(f"{len(todo)} runs left, about {total / 60:.1f} hours; {len(cells(models)) - len(todo)} are finished")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", default=["demo"], help="dense models: demo, folders")
    parser.add_argument("--plan", action="store_true", help="print the runs that are left and the hours they will take")
    parser.add_argument("--budget", type=float, help="start no run after so many minutes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where repair.md and repair/ go")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--no-bf16", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="few samples and questions: to see that it works")
    asked = parser.parse_args()
    torch.set_num_threads(asked.cores)
    logging.disable_progress_bar()
    sizes = (24, 8, 16) if asked.tiny else (SAMPLES, BATCH, 1000)
    place = Place(asked.work, asked.results, *sizes, bf16=not asked.no_bf16)
    if asked.plan:
        show_plan(place, asked.models)
        return
    if not (asked.work / "data").exists():
        write(asked.work / "data", **({"train": 40, "validation": 8, "test": 16} if asked.tiny else {}))
    started = time.monotonic()
    for cell in plan(place, asked.models)[0]:
        if asked.budget is not None and time.monotonic() - started > asked.budget * 60:
            break
        result = run(place, cell)
        keep(place.file(cell), result)
        print(f"{cell.name}: {result['exact_match']:.1%}, KL {result['kl']:.3f}, {result['seconds']:.0f} s", flush=True)
        show(place, asked.models)
    show(place, asked.models)
    show_plan(place, asked.models)


if __name__ == "__main__":
    main()
