"""What repair keeps of what it is not shown: `python benchmarks/keep.py WORK`.

A model at 2:4 by Wanda is repaired on questions, on captions, on both and on pictures without labels, always with the
same number of samples; then it is asked questions, for captions, and questions about things never seen together in
training. Each cell is a row of WORK/MODEL.jsonl with right or wrong for every record; rows that are there are not
computed again. One thread.

An answer is right when each of its tokens is the model's first choice behind those before it: when greedy decoding
writes it. One forward tells.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ressa
from ressa.answering.generate import answers
from ressa.data.emoji import write
from ressa.data.prompts import encode, shortest_first
from ressa.data.records import Record, read_records
from ressa.evaluation.divergence import answer_log_probs
from ressa.model.load import load
from ressa.tasks.base import Generation

SAMPLES = 1600
ASKED = {
    "validation": (("validation", 1000), ("validation_captions", 500), ("validation_unseen", 1000)),
    "test": (("test", 2000), ("test_captions", 1000), ("test_unseen", 2000)),
}


def right(model: Any, processor: Any, records: Sequence[Record], size: int = 64) -> list[int]:
    """1 for each record whose answer greedy decoding writes, 0 for others."""
    found = [0] * len(records)
    order = shortest_first(processor, records, answers=True)
    for at in range(0, len(order), size):
        chosen = order[at : at + size]
        batch = encode(processor, [records[i] for i in chosen], model.config, answers=True)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=False):
            logp_NV, labels_N, counts = answer_log_probs(model, batch)
        for i, same in zip(chosen, (logp_NV.argmax(-1) == labels_N).split(counts), strict=True):
            found[i] = int(same.all())
    return found


def ask(folder: str, data: Path, on: str) -> dict[str, list[int]]:
    """{what is asked: right or wrong, record by record}."""
    model, processor = load(folder)
    model.eval()
    found = {}
    for split, limit in ASKED[on]:
        records = read_records(data, split)
        random.Random(0).shuffle(records)
        kind = split.removeprefix(on).removeprefix("_") or "questions"
        found[kind] = right(model, processor, records[:limit])
    return found


def raw(data: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


def mixed(data: Path, name: str, parts: Sequence[tuple[str, float]], samples: int, seed: int) -> str:
    """A split of `samples` records: of each of the splits its share, drawn by the seed."""
    lines = []
    for split, share in parts:
        lines += random.Random(seed).sample(raw(data, split), round(share * samples))
    split = f"mix_{name}_{seed}"
    (data / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return split


def teach(dense: str, data: Path, split: str, count: int, seed: int) -> None:
    """`{split}_teacher`: `count` records drawn by the seed, with the dense model's answers instead of the data's."""
    out = data / f"{split}_teacher.jsonl"
    lines, records = raw(data, split), read_records(data, split)
    chosen = random.Random(seed).sample(range(len(lines)), count)
    model, processor = load(dense)
    how = Generation(max_new_tokens=150)
    said = answers(model, processor, [records[i] for i in chosen], data / f"{split}.{dense}.jsonl", 200, how)
    key = "caption" if "captions" in split else "answer"
    out.write_text("".join(json.dumps(lines[i] | {key: said[records[i].id]}) + "\n" for i in chosen))


CELLS: dict[str, tuple[Sequence[tuple[str, float]], dict[str, Any]]] = {
    "questions": ([("train", 1)], {}),
    "captions": ([("train_captions", 1)], {}),
    "both 1:1": ([("train", 0.5), ("train_captions", 0.5)], {}),
    "both 3:1": ([("train", 0.75), ("train_captions", 0.25)], {}),
    "questions, hidden 300": ([("train", 1)], {"hidden_weight": 300.0}),
    "questions, hidden 1000": ([("train", 1)], {"hidden_weight": 1000.0}),
    "questions, hidden 3000": ([("train", 1)], {"hidden_weight": 3000.0}),
    "questions, adapters alone": (
        [("train", 1)],
        {"train_norms": False, "train_biases": False, "train_connector": False},
    ),
    "questions, adapters and norms": ([("train", 1)], {"train_biases": False, "train_connector": False}),
    "questions, kl 1": ([("train", 1)], {"kl_weight": 1.0}),
    "questions 7:1 teacher captions": ([("train", 0.875), ("train_captions_teacher", 0.125)], {}),
    "questions 3:1 teacher captions": ([("train", 0.75), ("train_captions_teacher", 0.25)], {}),
    "teacher both 3:1": ([("train_teacher", 0.75), ("train_captions_teacher", 0.25)], {}),
    "teacher both 3:1, kl 1": ([("train_teacher", 0.75), ("train_captions_teacher", 0.25)], {"kl_weight": 1.0}),
    "teacher captions": ([("train_captions_teacher", 1)], {}),
    "captions 1:1 teacher questions": ([("train_captions", 0.5), ("train_teacher", 0.5)], {}),
    "captions 3:1 teacher questions": ([("train_captions", 0.75), ("train_teacher", 0.25)], {}),
    "captions, hidden 300": ([("train_captions", 1)], {"hidden_weight": 300.0}),
}
TODAY = ", no connector"  # behind the name of a cell: repaired with the default of today; the others as it was before


def table(rows: Sequence[dict[str, Any]], on: str) -> str:
    """Percent right of every cell, over all seeds; behind it the difference from repair on questions with its 95 %
    interval, record by record, over the seeds of both."""
    found: dict[str, dict[int, dict[str, list[int]]]] = {}
    for row in (row for row in rows if row["on"] == on):
        found.setdefault(row["cell"], {})[row["seed"]] = row["right"]
    kinds = list(next(iter(found["questions"].values())))
    lines = ["| | " + " | ".join(kinds) + " | worst, of dense |", "|---|" + "---:|" * (len(kinds) + 1)]
    for name, seeds in found.items():
        cells, worst = [], []
        for kind in kinds:
            right = [x for answers in seeds.values() for x in answers[kind]]
            cells.append(f"{100 * sum(right) / len(right):.1f}")
            whole = [x for seed in seeds for x in found["dense"].get(seed, found["dense"][0])[kind]]
            worst.append(sum(right) / sum(whole))
            base = found["questions" + TODAY * name.endswith(TODAY)]
            both = seeds.keys() & base.keys()
            if name not in ("dense", "pruned") and seeds is not base and both:
                pairs = [pair for s in both for pair in zip(seeds[s][kind], base[s][kind], strict=True)]
                cells[-1] += f" ({interval([a - b for a, b in pairs])})"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {min(worst):.0%} |")
    return "\n".join(lines)


def interval(differences: Sequence[int]) -> str:
    """The mean in percent and half of its 95 % interval."""
    values = 100 * torch.tensor(differences, dtype=torch.float64)
    return f"{values.mean():+.1f} ± {1.96 * values.std() / len(values) ** 0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cells", default=None, help=f"names with ; between them, {TODAY!r} behind any [all]")
    parser.add_argument("--model", default="demo", choices=["demo", "emoji-instructblip"])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--on", default="validation", choices=list(ASKED))
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--table", action="store_true", help="of the rows that are there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = asked.work
    data, rows = work / "data", work / f"{asked.model}.jsonl"
    if asked.table:
        print(table([json.loads(line) for line in rows.read_text().splitlines()], asked.on))
        return
    if not data.exists():
        write(data, train=4000, validation=500, test=1000)
    if not (data / "more").exists():
        write(data / "more", train=1, validation=1, test=500, seed=1)  # other scenes of never-together things
        lines = [json.loads(line) for line in (data / "more" / "test_unseen.jsonl").read_text().splitlines()]
        moved = [line | {"image": f"more/{line['image']}"} for line in lines]
        (data / "validation_unseen.jsonl").write_text("".join(json.dumps(line) + "\n" for line in moved))
    done = {json.loads(line)["key"] for line in rows.read_text().splitlines()} if rows.exists() else set()
    for seed in map(int, asked.seeds.split(",")):
        for name in asked.cells.split(";") if asked.cells else ["dense", "pruned", *CELLS]:
            key = f"{asked.on}/{asked.samples}/{seed}/{name}"
            if key in done:
                continue
            row = {"key": key, "cell": name, "seed": seed, "on": asked.on, "samples": asked.samples}
            row |= cell(work, asked.model, name, seed, asked.on, asked.samples)
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            told = {what: round(100 * sum(found) / len(found), 1) for what, found in row["right"].items()}
            print(key, told, row["seconds"], flush=True)


def cell(work: Path, dense: str, name: str, seed: int, on: str, samples: int) -> dict[str, Any]:
    """What a model answers right, and the seconds of the processor that its repair took."""
    data, pruned = work / "data", work / f"{dense}-pruned-{seed}"
    if name != "dense" and not pruned.exists():
        ressa.prune(dense, pruned, data=data, sparsity="2:4", method="wanda", seed=seed, threads=1)
    if name in ("dense", "pruned"):
        return {"right": ask(dense if name == "dense" else str(pruned), data, on), "seconds": 0}
    parts, settings = CELLS[name.removesuffix(TODAY)]
    settings = {"train_connector": not name.endswith(TODAY)} | settings
    for split, share in parts:
        if split.endswith("_teacher"):
            teach(dense, data, split.removesuffix("_teacher"), round(share * samples), seed)
    split = mixed(data, name.replace(" ", "_").replace(":", "-"), parts, samples, seed)
    out = work / f"{dense}-out"
    shutil.rmtree(out, ignore_errors=True)
    began = time.process_time()
    told = ressa.repair(pruned, out, teacher=dense, data=data, split=split, seed=seed, threads=1, **settings)
    seconds = time.process_time() - began
    return {"right": ask(str(out), data, on), "seconds": round(seconds, 1), "history": told["history"][-1]}


if __name__ == "__main__":
    main()
