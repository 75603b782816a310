"""What pruning a model larger than memory takes: `python benchmarks/scale.py WORK` writes results/scale.md.

A LLaVA of the shape of LLaVA-1.5-7B (scale_model.py) is written to WORK once. Every run is a process of its own that
may have no more private memory than LIMIT (RLIMIT_DATA: anonymous memory, and mapped files that may be written), which
the model alone exceeds. Its resident set is looked at five times a second from outside, as the kernel tells it:
anonymous memory apart from what is mapped from files; the largest resident set is the kernel's own (VmHWM). Outputs are
read again with the safetensors library alone, matrix by matrix, and their zeros counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import scale_model
from safetensors import safe_open

from ressa import plan

RESULTS = Path(__file__).parent / "results" / "scale.md"
GB = 10**9
TOKENS = 603  # of a record of scale_model.py: 576 of its picture, its words, and those of the template
RUNS: dict[str, dict[str, Any]] = {  # name: blocks (vision, language; None for all), records, limit, what to ask for
    "wanda 2:4": {"blocks": (None, None), "records": 4, "limit": 6, "method": "wanda"},
    "magnitude 2:4": {"blocks": (None, None), "records": 0, "limit": 3, "method": "magnitude"},
    "sparsegpt 2:4, 2 + 2 blocks": {"blocks": (2, 2), "records": 4, "limit": 8, "method": "sparsegpt"},
    # how many iterations there are is nothing to its memory, and all but everything to its time
    "admm 2:4, 2 + 2 blocks": {"blocks": (2, 2), "records": 4, "limit": 8, "method": "admm(iterations=2)"},
    "wanda 2:4, 2 + 4 blocks": {"blocks": (2, 4), "records": 1, "limit": 6, "method": "wanda"},
    "wanda 2:4, 2 + 8 blocks": {"blocks": (2, 8), "records": 1, "limit": 6, "method": "wanda"},
    "wanda 2:4, 2 + 16 blocks": {"blocks": (2, 16), "records": 1, "limit": 6, "method": "wanda"},
}


def child(asked: dict[str, Any]) -> None:
    """Prunes in this process, under the limit; prints when each block began, and what the kernel says at the end."""
    limit = int(asked["limit"] * GB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import ressa

    began: list[tuple[float, str]] = []
    told = {"method": asked["method"], "samples": max(asked["records"], 1), "threads": asked["threads"]}
    told |= {"data": asked["data"], "shard_size": "5GB"}
    start, busy = time.perf_counter(), time.process_time()
    manifest = ressa.prune(
        asked["model"], asked["out"], progress=lambda *at: began.append((time.process_time(), at[2])), **told
    )
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy}
    ends = [*[at for at, _ in began[1:]], time.process_time()]
    blocks = {name: end - at for (at, name), end in zip(began, ends, strict=True) if name}
    status = Path("/proc/self/status").read_text()
    found = {key: int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) * 1024 for key in ("VmHWM", "VmPeak")}  # type: ignore[index]
    print("\n" + json.dumps({**took, "blocks": blocks, "machine": manifest["machine"], **found}))


def measured(work: Path, name: str, threads: int) -> dict[str, Any]:
    run, model = RUNS[name], _model(work, *RUNS[name]["blocks"])
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    asked = {**run, "model": str(model), "out": str(out), "threads": threads}
    asked["data"] = (
        str(scale_model.records(work / f"data-{run['records']}", run["records"])) if run["records"] else None
    )
    command = [sys.executable, __file__, str(work), "--child", json.dumps(asked)]
    seen = {"RssAnon": 0, "RssFile": 0}
    with (work / "run.log").open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        while process.poll() is None:
            _look(process.pid, seen)
            time.sleep(0.2)
        assert process.stdout is not None
        printed = process.stdout.read().decode()
    if process.returncode:
        raise SystemExit(f"{name} failed: see {work / 'run.log'}")
    took = json.loads(printed.splitlines()[-1]) | seen | {"limit": run["limit"] * GB, "size": _size(model)}
    took |= _checked(out) | {"date": str(datetime.date.today()), "told": _told(model, run)}
    shutil.rmtree(out)
    return took


def _model(work: Path, vision: int | None, language: int | None) -> Path:
    folder = work / ("llava-7b" if language is None else f"llava-{vision}-{language}")
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        scale_model.write(folder, vision=vision, language=language)
    return folder


def _look(pid: int, seen: dict[str, int]) -> None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return
    for key in seen:
        if match := re.search(rf"{key}:\s+(\d+) kB", status):
            seen[key] = max(seen[key], int(match[1]) * 1024)


def _told(model: Path, run: dict[str, Any]) -> int:
    """What `ressa inspect --plan` says, with the process itself."""
    told = plan(model, samples=max(run["records"], 1), tokens=TOKENS)
    return told["process"] + told["steps"][f"prune: {run['method'].partition('(')[0]}"]["bytes"]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _checked(out: Path) -> dict[str, Any]:
    """Of every pruned matrix: in each four neighbours two zeros at least; how many matrices and weights that is."""
    names = set(json.loads((out / "ressa.json").read_text())["matrices"])
    matrices = weights = zeros = 0
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, framework="pt", backend="pread") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                if not re.search(r"layers\.\d+\..*(proj|fc\d)\.weight$", key):
                    continue
                fours = tensors.get_tensor(key).view(-1, 4) == 0
                assert (fours.sum(dim=1) >= 2).all(), key
                matrices, weights, zeros = matrices + 1, weights + fours.numel(), zeros + int(fours.sum())
    assert matrices == len(names), (matrices, len(names))
    return {"matrices": matrices, "weights": weights, "zeros": zeros}


MEMORY = ("model GB", "limit GB", "peak RSS GB", "told GB", "anonymous GB", "mapped GB")
HEADS = (*MEMORY, "s", "CPU s", "CPU s a block", "zeros")
WHERE = "when, where, threads, products"


def report(found: dict[str, dict[str, Any]], before: str) -> str:
    """The table; of what was not found its rows as they stood `before`.

    Seconds of a language block are from its beginning to the next one's, without the last, which ends otherwise.
    """
    rows = ["| | " + " | ".join([*HEADS, WHERE]) + " |", "|---|" + "---:|" * len(HEADS) + "---|"]
    for name in RUNS:
        if name not in found:
            rows += [line for line in before.splitlines() if line.startswith(f"| {name} |")]
            continue
        took, machine = found[name], found[name]["machine"]
        language = [seconds for block, seconds in took["blocks"].items() if "language_model" in block][:-1]
        memory = [f"{took[key] / GB:.2f}" for key in ("size", "limit", "VmHWM", "told", "RssAnon", "RssFile")]
        counted = math.isfinite(took["cpu"])
        block = ""
        if language and counted:
            block = f"{statistics.median(language):.1f} ({min(language):.1f} to {max(language):.1f})"
        zeros = f"{took['zeros']:,} of {took['weights']:,} in {took['matrices']} matrices"
        times = [f"{took['seconds']:.0f}", f"{took['cpu']:.0f}" if counted else "", block]
        place = f"{took['date']}, {machine['processor']}, {machine['threads']}, {machine['compute']}"
        rows.append(f"| {name} | " + " | ".join([*memory, *times, zeros, place]) + " |")
    return "\n".join(rows)


def write(found: dict[str, dict[str, Any]]) -> None:
    """Between the page's marks; what stands around them is written by hand."""
    before, start, rest = RESULTS.read_text(encoding="utf-8").partition("<!-- table -->\n")
    table, end, after = rest.partition("\n<!-- end of table -->")
    RESULTS.write_text(before + start + report(found, table) + end + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", action="append", choices=RUNS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(json.loads(asked.child))
    kept = asked.work / "scale.json"
    for name in asked.only or RUNS:
        found = json.loads(kept.read_text()) if kept.is_file() else {}
        found[name] = measured(asked.work, name, asked.threads)
        kept.write_text(json.dumps(found, indent=1))
        print(name, {key: value for key, value in found[name].items() if key != "blocks"}, flush=True)
        write({key: found[key] for key in RUNS if key in found})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
