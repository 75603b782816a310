"""Three ideas of 2025 and 2026 and one of our own, tried beside what ressa has: `python benchmarks/ideas.py WORK`.

    python benchmarks/ideas.py WORK --models demo --methods wanda --variants plain gradient --seeds 0
    python benchmarks/ideas.py WORK --page        # benchmarks/results/ideas.md alone, of the cells that are there

A cell is a model, a method, a sparsity, a seed (which draws the records that calibrate) and a variant: a name and
settings of its own, as in `local(epochs=5,lr=0.001)`. It is one JSON file in WORK/cells, written when it is finished,
and is not computed again. With --tune it is scored on validation records instead, in WORK/tuned: by these settings are
chosen. WORK/data and WORK/dense are made as benchmarks/smollm2.py does, WORK/scenes as
`ressa data emoji`. Models are pruned in memory: float32, but SmolLM2's products are computed in bfloat16.

Embedded models: KL to the dense model over answer tokens (nats), and exact match, which is told from the same forward:
greedy decoding gives the reference answer if and only if each of its tokens is the likeliest behind those before it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import ideas_tried
import smollm2
import torch
from ideas_page import write_page
from torch.nn.functional import cross_entropy, kl_div
from transformers.utils import logging

import ressa
from ressa import methods
from ressa.calibration.data import CalibrationData
from ressa.calibration.samples import drawn
from ressa.calibration.sweep import SweepSettings, sweep
from ressa.data.emoji import write as write_scenes
from ressa.data.prompts import IGNORED, encode, shortest_first
from ressa.data.records import read_records
from ressa.evaluation.divergence import answer_log_probs
from ressa.machine import processor, versions
from ressa.methods._spelling import steps
from ressa.model.structure import structure
from ressa.pruning.assign import assign_patterns
from ressa.pruning.blocks import prune_block
from ressa.pruning.request import Request
from ressa.pruning.settings import Prune

SMOLLM2, EMBEDDED = "smollm2", ("demo", "emoji-instructblip")
METHODS, SPARSITIES = ("wanda", "sparsegpt", "admm", "alps"), ("2:4", "60%", "70%")
QUESTIONS = {"validation": 400, "test": 1000, "test_captions": 300}  # captions are no part of what calibrates
SAMPLES = {SMOLLM2: 16}  # that calibrate; of embedded models 128
WINDOWS = 6  # of each text of SmolLM2


@dataclass(frozen=True)
class Cell:
    model: str
    method: str
    sparsity: str
    seed: int
    variant: str = "plain"

    def file(self, work: Path, folder: str = "cells") -> Path:
        pattern = self.sparsity.replace(":", "of").rstrip("%")
        return work / folder / f"{self.model}-{self.method}-{pattern}-{self.seed}-{self.variant}.json"

    @property
    def idea(self) -> tuple[str, dict[str, Any]]:
        """The variant's name and its settings."""
        return steps(self.variant)[0]


@cache
def loaded(work: Path, model: str, copy: str = "") -> tuple[Any, Any]:
    """A model and its processor; the "dense" copy stays as it is."""
    return ressa.load(work / "dense" if model == SMOLLM2 else model, dtype="float32")


@cache
def records(work: Path, model: str, part: str) -> list[Any]:
    return read_records(work / ("data" if model == SMOLLM2 else "scenes"), part)


@cache
def encoded(work: Path, model: str, part: str) -> list[dict[str, torch.Tensor]]:
    """The batches of what is asked. SmolLM2 is validated on windows at the end of the text that calibrates."""
    net, reader = loaded(work, model, "dense")
    if model == SMOLLM2:
        chosen = records(work, model, "train")[-WINDOWS:] if part == "validation" else records(work, model, part)
        chosen, size = chosen[:WINDOWS], 2
    else:
        chosen, size = drawn(records(work, model, part), QUESTIONS[part], 0), 64
    order = shortest_first(reader, chosen, answers=True) if model != SMOLLM2 else list(range(len(chosen)))
    starts = range(0, len(order), size)
    return [encode(reader, [chosen[i] for i in order[a : a + size]], net.config, answers=True) for a in starts]


@cache
def dense_answers(work: Path, model: str, part: str) -> list[torch.Tensor]:
    net = loaded(work, model, "dense")[0]
    with torch.inference_mode():
        return [answer_log_probs(net, batch)[0] for batch in encoded(work, model, part)]


def answers(work: Path, model: str, net: Any, part: str) -> dict[str, list[float]]:
    """For each question: the sum of KL(dense || model), the number of tokens, and 1 if the answer is right, else 0."""
    told: dict[str, list[float]] = {"kl": [], "tokens": [], "right": []}
    with torch.inference_mode():
        for batch, dense_NV in zip(encoded(work, model, part), dense_answers(work, model, part), strict=True):
            logp_NV, labels_N, counts = answer_log_probs(net, batch)
            kl_N = kl_div(logp_NV, dense_NV, reduction="none", log_target=True).sum(-1)
            told["kl"] += [round(kl.sum().item(), 5) for kl in kl_N.split(counts)]
            told["right"] += [int(right.all()) for right in (logp_NV.argmax(-1) == labels_N).split(counts)]
            told["tokens"] += counts
    return told


def likelihood(work: Path, net: Any, part: str, end: int) -> dict[str, list[float]]:
    """For each window of a text: the negative log-likelihood of its tokens, and their number; `end` ends no window."""
    told: dict[str, list[float]] = {"nll": [], "tokens": []}
    for batch in encoded(work, SMOLLM2, part):
        inputs = dict(batch)
        labels = inputs.pop("labels")[:, 1:]
        labels = labels.where(labels != end, IGNORED)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits = net(**inputs, use_cache=False).logits[:, :-1].float()
        nll_BT = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        told["nll"] += [round(x, 4) for x in nll_BT.sum(1).tolist()]
        told["tokens"] += (labels != IGNORED).sum(1).tolist()
    return told


def pruned(work: Path, cell: Cell) -> tuple[Any, dict[str, float]]:
    """The model pruned as the cell says, and the seconds of processor time that it took."""
    name, told = cell.idea
    loaded.cache_clear() if cell.model == SMOLLM2 else None
    net, reader = ressa.load(work / "dense" if cell.model == SMOLLM2 else cell.model, dtype="float32")
    asked = ideas_tried.settings(name, told)
    request = Request(Prune(method=cell.method, sparsity=cell.sparsity, seed=cell.seed, **asked))
    method, plan = methods.get(cell.method, seed=cell.seed, shrinkage=asked.get("shrinkage")), structure(net)
    autocast = torch.bfloat16 if cell.model == SMOLLM2 else None
    chosen = records(work, cell.model, "train")
    if cell.model == SMOLLM2:
        chosen = chosen[:-WINDOWS]
    calibration = CalibrationData(
        net,
        reader,
        chosen,
        SAMPLES.get(cell.model, 128),
        4 if cell.model == SMOLLM2 else 8,
        cell.seed,
        request.token_weights,
        autocast=autocast,
    )
    calibration.batches  # noqa: B018  (made here: reading pictures is not what is timed)
    started = time.process_time()
    patterns, _ = assign_patterns(request, None, plan, calibration, method)
    names = {linear for linear, pattern in patterns.items() if pattern.sparsity}
    data = calibration.over([block for block in plan.blocks() if block.linears.keys() & names])
    with torch.autocast("cpu", autocast) if autocast and name in ideas_tried.TRAINED else nullcontext():
        around = ideas_tried.prepared(name, told, data, lambda: loaded(work, cell.model, "dense")[0])
        for turn in around(sweep(data, method.needs, SweepSettings(), names)):
            prune_block(method, turn.block, turn.inputs, patterns, turn.linears)
    return net, {"seconds": round(time.process_time() - started, 1)}


def compute(work: Path, cell: Cell, *, tune: bool) -> dict[str, Any]:
    net, told = pruned(work, cell)
    net.eval()
    parts = ("validation",) if tune else smollm2.HELD_OUT if cell.model == SMOLLM2 else ("test", "test_captions")
    if cell.model == SMOLLM2:
        end = loaded(work, cell.model, "dense")[1].eos_token_id
        scores: dict[str, Any] = {part: likelihood(work, net, part, end) for part in parts}
    else:
        scores = {part: answers(work, cell.model, net, part) for part in parts}
    return vars(cell) | told | scores | {"processor": processor()["processor"], "versions": versions()}


def build(work: Path, model: str) -> None:
    if model != SMOLLM2 and not (work / "scenes").exists():
        write_scenes(work / "scenes")
    for name, make in (("dense", smollm2.build_model), ("data", smollm2.build_data)):
        if model == SMOLLM2 and not (work / name).exists():
            smollm2.apart(make, work)


def cells(told: argparse.Namespace) -> Iterator[Cell]:
    for seed, model, sparsity, method in product(told.seeds, told.models, told.sparsities, told.methods):
        for variant in told.variants:
            if ":" not in sparsity or "allocation" not in ideas_tried.settings(*steps(variant)[0]):
                yield Cell(model, method, sparsity, seed, variant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", choices=(*EMBEDDED, SMOLLM2), default=EMBEDDED)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--sparsities", nargs="+", choices=SPARSITIES, default=SPARSITIES)
    parser.add_argument("--variants", nargs="+", default=["plain"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tune", action="store_true", help="score on validation records alone, in WORK/tuned")
    parser.add_argument("--page", action="store_true", help="compute nothing")
    told = parser.parse_args()
    logging.disable_progress_bar()
    work = told.work.resolve()
    folder = "tuned" if told.tune else "cells"
    (work / folder).mkdir(parents=True, exist_ok=True)
    for cell in () if told.page else cells(told):
        if not (file := cell.file(work, folder)).exists():
            build(work, cell.model)
            fresh = file.with_suffix(".part")
            fresh.write_text(json.dumps(compute(work, cell, tune=told.tune)))
            fresh.rename(file)
    write_page(work)


if __name__ == "__main__":
    main()
