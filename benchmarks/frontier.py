"""What a byte buys, spent on zeros or on fewer bits: `python benchmarks/frontier.py WORK`.

    python benchmarks/frontier.py WORK --models smollm2 --methods alps   # the rest another day
    python benchmarks/frontier.py WORK --budget 0                        # table and plot alone

Perplexity of SmolLM2-135M (as benchmarks/smollm2.py makes it of a wheel, with the same texts) and exact match of both
embedded models, against the bytes that the linears of their blocks take in the packed format: dense and pruned, in
bfloat16 and in integers whose rounding is compensated. A row is one JSON file in benchmarks/results/frontier/, written
when it is finished, and is not computed again. WORK keeps data and pruned models.

Dense int3 is simulated: rounded as int4 is, with integers from -3 to 3; its bytes are counted as 3 bits a weight and a
scale for each group, but no format holds them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import smollm2
import torch
from transformers.utils import logging

import ressa
from ressa.data.emoji import write
from ressa.data.records import read_records
from ressa.exporting.calibrate import Grid, calibrated
from ressa.exporting.settings import Export
from ressa.machine import processor, versions
from ressa.model.structure import structure
from ressa.packed import format
from ressa.settings import Runtime

RESULTS = Path(__file__).parent / "results"
SMOLLM2, EMBEDDED = "smollm2", ("demo", "emoji-instructblip")
SPARSITIES = ("2:4", "50%", "8:16", "4:16", "60%", "75%")  # the order they are computed in
METHODS = ("alps", "admm")
VALUES = ("bf16", "int8", "int4")
GROUP = 64
PRUNED_WITH, ROUNDED_WITH = 48, 8  # windows of 512 tokens that calibrate SmolLM2
WINDOWS = 8  # held out, of either text
REPAIR = {"samples": 1600, "batch_size": 16, "train_connector": True}  # one pass, as in the study "ablation"
QUESTIONS = 1000
TICKS, PERPLEXITIES = (0.25, 0.4, 0.6, 1, 2), (30, 40, 60, 100, 200, 400)


@dataclass(frozen=True)
class Row:
    model: str
    method: str  # "" for dense
    sparsity: str
    repaired: bool
    values: str

    @property
    def base(self) -> str:
        pattern = self.sparsity.replace(":", "of").rstrip("%")
        return (
            "-".join([self.model, *([self.method, pattern] if self.method else ["dense"])])
            + "-repaired" * self.repaired
        )

    @property
    def file(self) -> Path:
        return RESULTS / "frontier" / f"{self.base}-{self.values}.json"

    @property
    def label(self) -> str:
        return f"{self.sparsity} {self.method}{', repaired' * self.repaired}" if self.method else "dense"

    @property
    def result(self) -> dict[str, Any] | None:
        return json.loads(self.file.read_text()) if self.file.is_file() else None


def rows(models: list[str], methods: list[str], sparsities: list[str]) -> Iterator[Row]:
    """All of them, what matters most first."""
    for model in models:
        yield from (Row(model, "", "0", False, values) for values in (*VALUES, *(["int3"] if model == SMOLLM2 else [])))
    for method, sparsity, model in product(methods, sparsities, models):
        if model != SMOLLM2 and method != METHODS[0]:
            continue  # one method is enough where repair follows
        for repaired in (False, True) if model != SMOLLM2 else (False,):
            yield from (Row(model, method, sparsity, repaired, values) for values in VALUES)


# ---- models ----------------------------------------------------------------------------------------------------------


def folder_of(work: Path, row: Row) -> Path | str:
    """The model whose values are stored: dense, pruned, or repaired."""
    data = work / ("data" if row.model == SMOLLM2 else "scenes")
    dense: Path | str = work / "dense" if row.model == SMOLLM2 else row.model
    if not row.method:
        return dense
    bare = Row(row.model, row.method, row.sparsity, False, "")
    pruned = work / "pruned" / bare.base
    if not pruned.exists():
        samples = {"samples": PRUNED_WITH} if row.model == SMOLLM2 else {}
        ressa.prune(dense, pruned, data=data, method=row.method, sparsity=row.sparsity, **samples)
    if not row.repaired:
        return pruned
    repaired = work / "repaired" / row.base
    if not repaired.exists():
        ressa.repair(pruned, repaired, teacher=dense, data=data, **REPAIR)
    return repaired


def stored(work: Path, row: Row, folder: Path | str) -> tuple[Path | str, int]:
    """(the folder in which the values are as the row says, the bytes that they take)."""
    out = work / "stored"
    shutil.rmtree(out, ignore_errors=True)
    if row.values == "bf16" and not row.method:
        return folder, 2 * sum(weights(folder).values())
    asked: dict[str, Any] = {"values": row.values, "group_size": GROUP}
    if row.values != "bf16":
        asked |= {"data": work / "scenes"} if row.model != SMOLLM2 else {"data": work / "data", "samples": ROUNDED_WITH}
    told = ressa.export(folder, out, **asked)["export"]
    return out, sum(told["linears"][name]["bytes"] for name in weights(folder))


def weights(folder: Path | str) -> dict[str, int]:
    """Of each linear of the blocks that are pruned: those of the connector are not, and counted nowhere."""
    blocks = [block for block in structure(ressa.load(folder)[0]).blocks() if block.part != "connector"]
    return {name: linear.weight.numel() for block in blocks for name, linear in block.linears.items()}


def dense_bf16(net: Any) -> None:
    """The linears of the blocks rounded to bfloat16; all else as it was."""
    for block in structure(net).blocks():
        for linear in block.linears.values():
            linear.weight.data = linear.weight.data.bfloat16().to(linear.weight.dtype)


def in_three_bits(net: Any, work: Path) -> int:
    """The linears of the blocks rounded to integers from -3 to 3, in place; returns the bytes these would take."""
    format.LARGEST["int3"], format.SCALES["int3"] = 3, torch.bfloat16
    settings = Export(values="int4", samples=ROUNDED_WITH)
    linears = {name: linear for block in structure(net).blocks() for name, linear in block.linears.items()}

    def lay(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keep_OI = torch.ones_like(weight_OI, dtype=torch.bool)
        return keep_OI, format.runs(keep_OI.sum(1), "int4", GROUP)

    records = read_records(work / "data", "train")
    made = calibrated(work / "dense", records, linears, Grid("int3", lay), settings, Runtime())
    for name, (integers_N, scale_S) in made.items():
        weight_OI = linears[name].weight.data
        values_N = integers_N * scale_S.float().repeat_interleave(lay(weight_OI)[1])
        weight_OI.copy_(values_N.view(weight_OI.shape))
    return sum(-(-3 * len(integers_N) // 8) + 2 * len(scale_S) for integers_N, scale_S in made.values())


def compute(work: Path, row: Row) -> dict[str, Any]:
    """What is kept of a row: bytes, weights and how well the model does."""
    started, folder = time.perf_counter(), folder_of(work, row)
    told: dict[str, Any] = {"weights": sum(weights(folder).values())}
    if row.values == "int3":
        net, tokenizer = ressa.load(folder, dtype="float32")
        told["bytes"] = in_three_bits(net, work)
    else:
        folder, told["bytes"] = stored(work, row, folder)
    if row.model == SMOLLM2:
        if row.values != "int3":
            net, tokenizer = ressa.load(folder, dtype="float32")
        if row.values == "bf16" and not row.method:
            dense_bf16(net)
        texts = {split: smollm2.perplexity(net, tokenizer, work / "data", split, WINDOWS) for split in smollm2.HELD_OUT}
        told["perplexity"] = texts
    else:
        told["exact_match"] = ressa.evaluate(folder, data=work / "scenes", limit=QUESTIONS, batch_size=64)[
            "exact_match"
        ]
    told |= {"seconds": round(time.perf_counter() - started), "date": str(datetime.date.today())}
    return told | {"processor": processor()["processor"], "versions": versions()}


# ---- table and plot --------------------------------------------------------------------------------------------------


def score(result: dict[str, Any]) -> float:
    """Smaller is better: the mean of the log perplexities, or what is not answered right."""
    if "perplexity" in result:
        return sum(torch.tensor(value).log().item() for value in result["perplexity"].values()) / 2
    return 1 - result["exact_match"]


def size(result: dict[str, Any]) -> float:
    """Bytes a weight."""
    return result["bytes"] / result["weights"]


def front(found: dict[Row, dict[str, Any]]) -> set[Row]:
    """Rows that none beats in both."""
    return {
        row
        for row, one in found.items()
        if not any(size(o) <= size(one) and score(o) < score(one) for other, o in found.items() if other != row)
    }


def dense_at(found: dict[Row, dict[str, Any]], place: float) -> float | None:
    """The score of dense rows at so many bytes a weight, on straight lines between them; None below the smallest."""
    points = sorted((size(result), score(result)) for row, result in found.items() if not row.method)
    for (a, left), (b, right) in pairwise(points):
        if a <= place <= b:
            return left + (right - left) * (place - a) / (b - a)
    return None


def against(found: dict[Row, dict[str, Any]], result: dict[str, Any]) -> str:
    """Whether a sparse row is better or worse than dense values of its size; "smaller" if there are none so small.

    Better is also what answers better than a dense row that is larger.
    """
    beaten = any(not row.method and size(o) >= size(result) and score(o) > score(result) for row, o in found.items())
    dense = dense_at(found, size(result))
    if beaten or (dense is not None and score(result) < dense):
        return "better"
    return "worse" if dense is not None else "smaller"


def table(found: dict[Row, dict[str, Any]]) -> str:
    texts = next(iter(found.values())).get("perplexity")
    heads = [f"perplexity, {smollm2.HELD_OUT[split]}" for split in texts] if texts else ["exact match"]
    lines = [f"| | values | bytes a weight | {' | '.join(heads)} | against dense at equal bytes | front |"]
    lines.append("|---|---|---:|" + "---:|" * len(heads) + "---|---|")
    best = front(found)
    for row, result in sorted(found.items(), key=lambda pair: -size(pair[1])):
        numbers = (
            [f"{value:.2f}" for value in result["perplexity"].values()] if texts else [f"{result['exact_match']:.1%}"]
        )
        verdict = against(found, result) if row.method else ""
        cells = [row.label, row.values, f"{size(result):.3f}", *numbers, verdict, "*" if row in best else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(found: dict[Row, dict[str, Any]]) -> str:
    """One plain sentence on where a byte is spent better on zeros."""
    won = [
        f"{row.label} {row.values} ({size(result):.2f})"
        for row, result in found.items()
        if row.method and against(found, result) == "better"
    ]
    sparse = [
        f"{row.label} {row.values} ({size(found[row]):.2f})" for row in sorted(front(found), key=str) if row.method
    ]
    first = (
        f"Zeros are the better way to spend a byte with {', '.join(won)}"
        if won
        else "At no size that dense values reach are zeros the better way to spend a byte"
    )
    return f"{first}. On the front stand, of sparse models (bytes a weight): {', '.join(sparse) or 'none'}."


def int8_costs(found: dict[Row, dict[str, Any]]) -> str:
    """What int8 costs over bfloat16 of the same model, at most."""
    worst, where = -1.0, ""
    for row, result in found.items():
        base = found.get(Row(row.model, row.method, row.sparsity, row.repaired, "bf16"))
        if row.values == "int8" and base and "perplexity" in result:
            cost = max(result["perplexity"][text] / base["perplexity"][text] - 1 for text in base["perplexity"])
            worst, where = max((worst, where), (cost, row.label))
    return f"int8 costs at most {worst:.2%} of perplexity over the same model in bfloat16 ({where})." if where else ""


def plot(every: dict[str, dict[Row, dict[str, Any]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(every), 5.5), facecolor="white", layout="constrained")
    for axes, (model, found) in zip(figure.subplots(1, len(every), squeeze=False)[0], every.items(), strict=True):
        for first in {row.label: row for row in found}.values():
            line = sorted((size(result), score(result)) for row, result in found.items() if row.label == first.label)
            ys = [torch.tensor(y).exp().item() if model == SMOLLM2 else 100 * (1 - y) for _, y in line]
            axes.plot([x for x, _ in line], ys, label=first.label, **style(first))
        axes.set_xscale("log")
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("bytes a weight, of the blocks' linears")
        axes.set_ylabel("perplexity (geometric mean of both texts)" if model == SMOLLM2 else "exact match, %")
        if model == SMOLLM2:
            axes.set_yscale("log")
            axes.set_yticks(PERPLEXITIES, [f"{tick:g}" for tick in PERPLEXITIES], minor=False)
            axes.set_yticks([], minor=True)
        axes.set_title("SmolLM2-135M" if model == SMOLLM2 else model)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(RESULTS / "frontier.png", dpi=110)


def style(row: Row) -> dict[str, Any]:
    """A colour for each sparsity; dashes for the second method and for what is repaired."""
    if not row.method:
        return {"color": "black", "linewidth": 2.5, "marker": "o", "markersize": 4}
    dashed = row.repaired or row.method != METHODS[0]
    colour = f"C{SPARSITIES.index(row.sparsity)}"
    return {"color": colour, "linestyle": "--" if dashed else "-", "marker": "o", "markersize": 4}


def show() -> None:
    """frontier.md and frontier.png, from all rows that are there."""
    every: dict[str, dict[Row, dict[str, Any]]] = {}
    planned = list(rows([SMOLLM2, *EMBEDDED], list(METHODS), list(SPARSITIES)))
    for row in planned:
        if result := row.result:
            every.setdefault(row.model, {})[row] = result
    measured = sum(len(found) for found in every.values())
    every = {model: found for model, found in every.items() if any(row.method for row in found)}
    machines = " and ".join(sorted({result["processor"] for found in every.values() for result in found.values()}))
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    parts = [
        "# What a byte buys: zeros or fewer bits",
        f"{datetime.date.today()}, {platform.machine()}, {machines}, {packages}. "
        "Bytes are those of the linears of all blocks of vision and language in the packed format (values, bitmask, "
        "scales), divided by the number of their weights. int8 has a scale for each row, int4 and int3 one for "
        f"{GROUP} kept weights; rounding is compensated (docs/packed.md). int3 is simulated: rounded, its bytes "
        "counted, and no format holds it. `*` marks rows that none beats in both bytes and score; *against dense at "
        "equal bytes* compares with a straight line between dense rows and with larger ones, and *smaller* is below "
        "the smallest of them.",
        f"**{measured} of {len(planned)} rows are measured**; `python benchmarks/frontier.py WORK` goes on.",
        "![Score against bytes](frontier.png)",
    ]
    for model, found in every.items():
        if model == SMOLLM2:
            parts += [
                f"## SmolLM2-135M\n\nPerplexity of {WINDOWS} windows of 512 tokens of each held-out text, computed in "
                f"float32. Pruned with {PRUNED_WITH} windows, not repaired; rounded with {ROUNDED_WITH}. The dense "
                "model is itself what 4 bits left (Q4_1, groups of 32), unpacked, which may flatter dense int4.",
                f"**{verdict(found)}** {int8_costs(found)}",
            ]
        else:
            parts += [
                f"## {model}\n\nExact match on {QUESTIONS} test questions; pruned and rounded with 128 records, "
                f"repaired with {REPAIR['samples']} samples. One question is 0.1 %: differences below 2 % say nothing.",
                f"**{verdict(found)}**",
            ]
        parts.append(table(found))
        parts += [f"{row.label} {row.values}: {result['note']}" for row, result in found.items() if "note" in result]
    (RESULTS / "frontier.md").write_text("\n\n".join(parts) + "\n")
    plot(every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", default=[SMOLLM2, *EMBEDDED], choices=[SMOLLM2, *EMBEDDED])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--sparsities", nargs="+", default=list(SPARSITIES), choices=SPARSITIES)
    parser.add_argument("--budget", type=float, help="start no row after so many minutes")
    asked = parser.parse_args()
    work, started = asked.work.resolve(), time.monotonic()
    logging.disable_progress_bar()
    for name, make in (("dense", smollm2.build_model), ("data", smollm2.build_data)):
        if SMOLLM2 in asked.models and not (work / name).exists():
            make(work)
    if not (work / "scenes").exists():
        write(work / "scenes")
    for row in rows(asked.models, asked.methods, asked.sparsities):
        if asked.budget is not None and time.monotonic() - started > 60 * asked.budget:
            break
        if row.result is None:
            told = compute(work, row)
            row.file.parent.mkdir(parents=True, exist_ok=True)
            fresh = row.file.with_suffix(".partial")
            fresh.write_text(json.dumps(told, indent=1) + "\n")
            os.replace(fresh, row.file)
            print(
                f"{row.base} {row.values}: {size(told):.3f}", told.get("perplexity") or told["exact_match"], flush=True
            )
    show()


if __name__ == "__main__":
    main()
