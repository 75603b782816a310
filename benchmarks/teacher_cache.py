"""Repair with a live teacher beside repair with a cached one: `python benchmarks/teacher_cache.py WORK`.

Writes benchmarks/results/teacher_cache.md: peak memory of a process that repairs with the teacher beside the student,
of one that reads what the teacher said, and of the one that asks it; how far the merged weights are apart; and the size
of the cache. The model is the embedded one made wider, with random weights: memory is what counts here. Runs that are
finished stay in WORK.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

import ressa
from ressa.data.emoji import write
from ressa.demo import EMBEDDED

RESULTS = Path(__file__).parent / "results" / "teacher_cache.md"


def widen(folder: Path, width: int) -> None:
    """The embedded model with a language model of another width, untrained, with its processor."""
    config = AutoConfig.from_pretrained(EMBEDDED)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = width, 3 * width, width // text.num_attention_heads
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(EMBEDDED).save_pretrained(folder)


def repaired(work: Path, name: str, *more: str) -> dict:
    """What ressa.json says of a repair in a process of its own."""
    out = work / name
    if not out.exists():
        words = [
            "repair",
            str(work / "pruned"),
            str(out),
            "--teacher",
            str(work / "dense"),
            "--data",
            str(work / "data"),
        ]
        words += ["--batch-size", "4", "--samples", "32", *more]
        subprocess.run([sys.executable, "-m", "ressa.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "ressa.json").read_text())


def apart(work: Path, one: str, two: str) -> float:
    """|one - two| / |one - pruned| over all weights."""
    first, second, start = (dict(ressa.load(work / name)[0].named_parameters()) for name in (one, two, "pruned"))
    far = sum((first[n] - second[n]).float().square().sum().item() for n in first)
    return (far / sum((first[n] - start[n]).float().square().sum().item() for n in first)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    asked = parser.parse_args()
    work, steps = asked.work, ("--steps", str(asked.steps))
    if not (work / "data").exists():
        write(work / "data", train=40, validation=8, test=8)
    if not (work / "dense").exists():
        widen(work / "dense", asked.width)
    if not (work / "pruned").exists():
        ressa.prune(work / "dense", work / "pruned", method="magnitude")
    cache = ("--teacher-cache", str(work / "cache"))
    live, first = repaired(work, "live", *steps), repaired(work, "asks and trains", *steps, *cache)
    cached = repaired(work, "cached", *steps, *cache)
    dense = sum(f.stat().st_size for f in (work / "dense").glob("*.safetensors")) / 1e6
    size = sum(f.stat().st_size for f in (work / "cache").iterdir()) / 1e6
    peaks = {name: told["peak_memory_bytes"] / 1e6 for name, told in (("live", live), ("f", first), ("c", cached))}
    versions = ", ".join(f"{name} {version(name)}" for name in ("ressa", "torch", "transformers"))
    text = "\n".join(
        [
            "# A cached teacher beside a live one",
            "",
            f"{datetime.date.today()}, {platform.machine()}, CPU, float32, {versions}. A LLaVA of {dense:.0f} MB "
            f"(float32, random weights), 2:4 by magnitude, {asked.steps} steps of 4 records; KL over the 64 likeliest "
            "words, outputs of all blocks in bfloat16.",
            "",
            "| the teacher | peak memory of the process, MB | less than live, MB |",
            "|---|---:|---:|",
            f"| live, beside the student | {peaks['live']:.0f} | |",
            f"| asked first, then forgotten | {peaks['f']:.0f} | {peaks['live'] - peaks['f']:.0f} |",
            f"| cached by an earlier run | {peaks['c']:.0f} | {peaks['live'] - peaks['c']:.0f} |",
            "",
            f"The merged weights of live and cached are apart by {apart(work, 'live', 'cached'):.2%} of the way that "
            f"training went. The cache of 32 records has {size:.1f} MB.",
            "",
        ]
    )
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
