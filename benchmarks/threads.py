"""What waiting threads cost, asleep and spinning: `python benchmarks/threads.py WORK`.

Writes benchmarks/results/threads.md: seconds of prune, 40 steps of repair and 200 questions of evaluate on the embedded
model, on two threads, by what OpenMP's waiting threads do; on a quiet machine and beside one busy process. The variants
take turns, so that what else the machine does hits all of them; each is the median of its runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from ressa.data.emoji import write
from ressa.machine import processor

RESULTS = Path(__file__).parent / "results" / "threads.md"
VARIANTS = {  # spins of libgomp before a waiting thread sleeps; without any variable set it is 300,000
    "300,000 spins (libgomp's own)": {"GOMP_SPINCOUNT": "300000"},
    "none (passive)": {"OMP_WAIT_POLICY": "passive"},
    "10,000": {"GOMP_SPINCOUNT": "10000"},
    "30,000": {"GOMP_SPINCOUNT": "30000"},
}
BUSY = "while True: pass"
TIMEOUT = 300


def commands(work: Path) -> dict[str, list[str]]:
    data, pruned = ["--data", str(work / "data")], str(work / "pruned")
    teach = ["--teacher", "demo", "--steps", "40", "--dtype", "float32"]
    return {
        "prune": ["prune", "demo", str(work / "out"), *data, "--method", "admm", "--dtype", "float32"],
        "repair": ["repair", pruned, str(work / "out"), *data, *teach],
        "evaluate": ["evaluate", "demo", *data, "--limit", "200", "--dtype", "float32"],
    }


def seconds(words: list[str], work: Path, variant: dict[str, str]) -> float:
    """What the verb itself says it took, without the start of Python."""
    subprocess.run(["rm", "-rf", str(work / "out")], check=True)
    own = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in own} | variant
    environment["OMP_NUM_THREADS"] = "2"
    command = [sys.executable, "-m", "ressa.cli", *words, "--json"]
    try:
        done = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return float("inf")
    return json.loads(done.stdout)["seconds"]


def measure(work: Path, runs: int, busy: bool) -> dict[str, dict[str, list[float]]]:
    """{command: {variant: seconds, run by run}}."""
    told: dict[str, dict[str, list[float]]] = {verb: {name: [] for name in VARIANTS} for verb in commands(work)}
    beside = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        for _ in range(runs):
            for verb, words in commands(work).items():
                for name, variant in VARIANTS.items():
                    told[verb][name].append(seconds(words, work, variant))
                    print(verb, name, told[verb][name][-1], flush=True)
    finally:
        if beside:
            beside.kill()
    return told


def table(told: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = ["| | " + " | ".join(VARIANTS) + " |", "|---|" + "---:|" * len(VARIANTS)]
    for verb, found in told.items():
        medians = {name: statistics.median(runs) for name, runs in found.items()}
        first = next(iter(medians.values()))
        ratios = {m: f" ({m / first:.2f} x)" if first < TIMEOUT else "" for m in medians.values()}
        cells = [f"{m:.1f} s{ratios[m]}" if m < TIMEOUT else f"over {TIMEOUT} s" for m in medians.values()]
        lines.append(f"| {verb} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--busy-runs", type=int, default=1)
    asked = parser.parse_args()
    work = asked.work
    if not (work / "data").exists():
        write(work / "data", train=400, validation=2, test=100)
    if not (work / "pruned").exists():
        words = ["prune", "demo", str(work / "pruned"), "--method", "magnitude"]
        subprocess.run([sys.executable, "-m", "ressa.cli", *words], check=True, capture_output=True)
    told = {"quiet": measure(work, asked.runs, busy=False), "busy": measure(work, asked.busy_runs, busy=True)}
    (work / "threads.json").write_text(json.dumps(told))
    machine = processor()
    lines = [
        "# Waiting threads",
        "",
        f"{datetime.date.today()}, {machine['processor']}, {machine['capability']}, {os.cpu_count()} cores, 2 threads; "
        f"whole commands on the embedded model in float32, in turns; medians of {asked.runs} runs "
        f"({asked.busy_runs} beside the busy process).",
        "",
        "A quiet machine:",
        "",
        *table(told["quiet"]),
        "",
        "Beside one process that is always busy:",
        "",
        *table(told["busy"]),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
