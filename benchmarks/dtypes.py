"""The demo in float32, in bfloat16 and as `auto` has it: `python benchmarks/dtypes.py WORK`.

Runs the shipped recipe of the demo once in each number format and compares what comes out: exact match of 1,000
questions, seconds, and the KL between the answers of the formats. Writes one file for each kind of processor,
benchmarks/results/dtypes/CAPABILITY.json, and from all of them benchmarks/results/dtypes.md and the table in
docs/machines.md. What is finished stays in WORK. To see a processor without AVX-512 on one that has it, set
ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2; `--formats auto` leaves out bfloat16, which takes long there.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import ressa
from ressa.machine import found, processor
from ressa.model.load import load_to_ask

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STAGES = ("dense", "pruned", "repaired")


def demo(out: Path, dtype: str) -> dict[str, Any]:
    """{stage: exact match, seconds of making it and of asking it}; a finished stage is not run again."""
    recipe = ressa.read_recipe(ROOT / "src" / "ressa" / "recipes" / "demo.yaml")
    told = ressa.run(replace(recipe, out=str(out), runtime=None if dtype == "auto" else ressa.Runtime(dtype=dtype)))
    seconds = told["seconds"]
    making = {"dense": None, "pruned": seconds["prune"], "repaired": seconds["repair"]}
    return {
        name: {"exact_match": told["scores"][name]["exact_match"], "making": making[name]}
        | {"asking": seconds[f"evaluate {name}"], "compute": told["scores"][name]["machine"]["compute"]}
        for name in STAGES
    }


def between(wide: Path, low: Path) -> dict[str, float]:
    """{stage: KL(float32 || bfloat16) of its answers}: of one dense folder computed twice, and of two whole runs."""
    told = {}
    for name in STAGES:
        ours = load_to_ask("demo" if name == "dense" else low / name, "cpu", "bfloat16")[:2]
        theirs = load_to_ask("demo" if name == "dense" else wide / name, "cpu", "float32")[:2]
        told[name] = ressa.evaluate(ours, against=theirs, data=wide / "data", limit=1000, batch_size=64)["kl"]
    return told


def rows(told: dict[str, Any]) -> list[str]:
    where = f"{told['processor']}, {told['capability']}, {told['threads']} threads, {told['date']}"
    lines = [f"{where}:", "", "| | exact match | making it | asking | KL between the formats |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name in STAGES:
        for asked, formats in told["formats"].items():
            one = formats[name]
            label = f"{one['compute']} (auto)" if asked == "auto" else one["compute"]
            making = f"{one['making']:.0f} s" if one["making"] is not None else ""
            kl = f"{told['kl'][name]:.4f}" if one["compute"] == "bfloat16" and told["kl"] else ""
            lines.append(f"| {name}, {label} | {one['exact_match']:.1%} | {making} | {one['asking']:.0f} s | {kl} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--formats", nargs="+", choices=("auto", "float32", "bfloat16"))
    asked = parser.parse_args()
    native = "cpu" in found().native_bf16
    formats = asked.formats or ["auto", "float32" if native else "bfloat16"]
    told: dict[str, Any] = {"date": str(datetime.date.today()), "threads": torch.get_num_threads()} | processor()
    told["formats"] = {dtype: demo(asked.work / dtype, dtype) for dtype in formats}
    both = {"float32": asked.work / ("float32" if native else "auto")}
    both["bfloat16"] = asked.work / ("auto" if native else "bfloat16")
    told["kl"] = between(both["float32"], both["bfloat16"]) if len(formats) > 1 else {}
    (RESULTS / "dtypes").mkdir(exist_ok=True)
    (RESULTS / "dtypes" / f"{told['capability']}.json").write_text(json.dumps(told, indent=1) + "\n")
    files = sorted((RESULTS / "dtypes").glob("*.json"), reverse=True)
    lines = [line for file in files for line in rows(json.loads(file.read_text()))]
    (RESULTS / "dtypes.md").write_text("\n".join(["# The demo in each number format", "", *lines]).rstrip() + "\n")
    page = ROOT / "docs" / "machines.md"
    before, begin, rest = page.read_text().partition("<!-- dtypes -->\n")
    end = "<!-- end of dtypes -->"
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
