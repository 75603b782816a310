"""The demo in float32, in bfloat16 and as `auto` has it: `python benchmarks/dtypes.py WORK`.

Prunes (2:4 by Wanda), repairs (6,400 samples) and asks (1,000 questions) the embedded model once in each format, and
compares what comes out: exact match, seconds, and the KL between the answers of the formats. Writes one file for each
kind of processor, benchmarks/results/dtypes/CAPABILITY.json, and from all of them benchmarks/results/dtypes.md. What is
finished stays in WORK. To see a processor without AVX-512 on one that has it, set ATEN_CPU_CAPABILITY=avx2 and
ONEDNN_MAX_CPU_ISA=AVX2; `--formats float32` leaves out the one that takes long there.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import ressa
from ressa.data.emoji import write
from ressa.machine import found, processor
from ressa.model.load import load_to_ask

RESULTS = Path(__file__).parent / "results"
FORMATS = ("float32", "bfloat16")
QUESTIONS = 1000


def pipeline(work: Path, dtype: str) -> dict[str, Any]:
    """Folders and what it took; a finished stage is not run again."""
    data, pruned, repaired = work / "data", work / dtype / "pruned", work / dtype / "repaired"
    if not pruned.exists():
        ressa.prune("demo", pruned, data=data, method="wanda", sparsity="2:4", dtype=dtype)
    if not repaired.exists():
        ressa.repair(pruned, repaired, teacher="demo", data=data, samples=6400, dtype=dtype)
    told: dict[str, Any] = {}
    for name, model in (("dense", "demo"), ("pruned", pruned), ("repaired", repaired)):
        out = work / dtype / "scores" / name
        if not (out / "scores.json").exists():
            ressa.evaluate(model, data=data, limit=QUESTIONS, batch_size=64, out=out, dtype=dtype)
        scores = json.loads((out / "scores.json").read_text())
        told[name] = {"exact_match": scores["exact_match"], "seconds": scores["seconds"]}
    for name, folder in (("pruned", pruned), ("repaired", repaired)):
        told[name]["making"] = json.loads((folder / "ressa.json").read_text())["seconds"]
    return told


def between(work: Path) -> dict[str, float]:
    """{stage: KL(float32 || bfloat16) of its answers}: of one dense folder computed twice, and of two whole runs."""
    told = {}
    for name in ("dense", "pruned", "repaired"):
        folders = ["demo" if name == "dense" else work / dtype / name for dtype in FORMATS]
        wide, low = (load_to_ask(f, "cpu", dtype)[:2] for f, dtype in zip(folders, FORMATS, strict=True))
        told[name] = ressa.evaluate(low, against=wide, data=work / "data", limit=QUESTIONS, batch_size=64)["kl"]
    return told


def rows(told: dict[str, Any]) -> list[str]:
    auto = "bfloat16" if told["native_bf16"] else "float32"
    where = f"{told['processor']}, {told['capability']}, {told['threads']} threads, {told['date']}"
    lines = [f"**{where}**: auto is {auto}.", ""]
    lines += ["| | exact match | making it | asking | KL between the formats |", "|---|---:|---:|---:|---:|"]
    for name in ("dense", "pruned", "repaired"):
        for dtype, found_there in told["formats"].items():
            one = found_there[name]
            making = f"{one['making']:.0f} s" if "making" in one else ""
            kl = f"{told['kl'][name]:.4f}" if dtype == "bfloat16" and name in told["kl"] else ""
            mark = " (auto)" if dtype == auto else ""
            lines.append(
                f"| {name}, {dtype}{mark} | {one['exact_match']:.1%} | {making} | {one['seconds']:.0f} s | {kl} |"
            )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    asked = parser.parse_args()
    work = asked.work
    if not (work / "data").exists():
        write(work / "data")
    import torch

    told: dict[str, Any] = {"date": str(datetime.date.today()), "threads": torch.get_num_threads()} | processor()
    told |= {"native_bf16": "cpu" in found().native_bf16}
    told["formats"] = {dtype: pipeline(work, dtype) for dtype in asked.formats}
    told["kl"] = between(work) if set(asked.formats) == set(FORMATS) else {}
    (RESULTS / "dtypes").mkdir(exist_ok=True)
    (RESULTS / "dtypes" / f"{told['capability']}.json").write_text(json.dumps(told, indent=1) + "\n")
    lines = ["# float32, bfloat16 and auto on the demo", ""]
    for file in sorted((RESULTS / "dtypes").glob("*.json")):
        lines += rows(json.loads(file.read_text()))
    (RESULTS / "dtypes.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
