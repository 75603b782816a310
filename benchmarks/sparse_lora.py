"""SparseLoRA beside LoRA and the formula written out, on one linear of Vicuna-7B: `python benchmarks/sparse_lora.py`.

Writes benchmarks/results/sparse_lora.md. One linear of 11008 inputs and 4096 outputs, half of its weights zero, rank 8,
1024 tokens, forward and backward:

    LoRA              peft's own, dense: merging it would fill the zeros
    naive             (W + s B A) * M as autograd does it by itself, which is what RESSA's released code does
    SparseLoRA        exact
    straight-through  the same forward, biased gradients

Bytes kept are those of all tensors that autograd saves, parameters apart, each storage once. Memory is measured in a
process for each: what the step adds to what the process held before it. Steps are timed in turns in one process, in
processor time of one thread, so that other work on the machine falls out; of the ratios within a turn the median.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import peft
import torch
from torch import nn

from ressa.machine import forget_peak, peak_memory
from ressa.repairing.sparse_lora import SparseLoraConfig

RESULTS = Path(__file__).parent / "results" / "sparse_lora.md"
OUT, IN, RANK, TOKENS = 4096, 11008, 8, 1024
TINY = 64, 96, 4, 32


class Naive(nn.Module):
    """The formula, left to autograd. The mask is a buffer, as in RESSA's released code."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight = linear.weight.requires_grad_(False)
        self.register_buffer("mask", linear.weight != 0)
        self.a, self.b = nn.Parameter(torch.randn(rank, linear.in_features)), nn.Parameter(_b(linear, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, (self.weight + 2 * (self.b @ self.a)) * self.mask)


def _b(linear: nn.Linear, rank: int) -> torch.Tensor:
    return torch.zeros(linear.out_features, rank)


def build(name: str, sizes: tuple[int, ...]) -> nn.Module:
    out, inputs, rank, _ = sizes
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, out, bias=False))
    with torch.no_grad():
        for rows in model[0].weight.split(64):  # no large temporaries: the peak of a step is what counts here
            rows.mul_(torch.rand_like(rows) < 0.5)
    targets = {"target_modules": ["0"]}
    if name == "naive":
        return Naive(model[0], rank)
    if name == "LoRA":
        return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, **targets))
    through = name == "straight-through"
    config = SparseLoraConfig(rank=rank, alpha=2 * rank, straight_through=through, **targets)
    return peft.get_peft_model(model, config)


NAMES = ("LoRA", "naive", "SparseLoRA", "straight-through")


def stepper(name: str, sizes: tuple[int, ...], dtype: str) -> tuple[nn.Module, Callable[..., None]]:
    """The module, and one step of it: forward, backward, gradients gone. The input needs its gradient, too.

    A step with `few` tokens is there to warm up: libraries allocate for good what they need.
    """
    model = build(name, sizes)
    x = torch.randn(sizes[3], sizes[1], requires_grad=True)
    dy = torch.randn(sizes[3], sizes[0])
    if dtype == "bfloat16":
        for parameter in model.parameters():
            parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()

    def step(few: int | None = None) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            y = model(x[:few])
        y.backward(dy[:few].to(y.dtype))
        x.grad = None
        model.zero_grad()

    return model, step


def kept(name: str, sizes: tuple[int, ...], dtype: str) -> int:
    """Bytes that autograd holds between forward and backward, without parameters and buffers."""
    model, _ = stepper(name, sizes, dtype)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast:
        model(torch.randn(sizes[3], sizes[1], requires_grad=True))
    return sum(storage.nbytes() for storage in found.values())


def peak(name: str, sizes: tuple[int, ...], dtype: str) -> int:
    """Bytes that a step adds at its height to what is held before it; in a process of its own."""
    _, step = stepper(name, sizes, dtype)
    step(few=8)
    forget_peak()
    before = peak_memory()
    step()
    return peak_memory() - before


def in_a_process(name: str, tiny: bool, dtype: str) -> int:
    words = [sys.executable, __file__, "--peak-of", name, "--dtype", dtype, *(["--tiny"] if tiny else [])]
    # glibc must give freed memory back at once, or the peak would be that of an earlier moment
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout)


def times(sizes: tuple[int, ...], dtype: str, repeats: int) -> dict[str, list[float]]:
    """Processor seconds of a step of each, turn by turn."""
    steps = {name: stepper(name, sizes, dtype)[1] for name in NAMES}
    for step in steps.values():
        step(few=8)
    taken: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(repeats):
        for name in NAMES[turn % len(NAMES) :] + NAMES[: turn % len(NAMES)]:
            start = time.process_time()
            steps[name]()
            taken[name].append(time.process_time() - start)
    return taken


def table(sizes: tuple[int, ...], dtype: str, repeats: int, tiny: bool) -> list[str]:
    bytes_kept = {name: kept(name, sizes, dtype) for name in NAMES}
    height = {name: in_a_process(name, tiny, dtype) for name in NAMES}
    taken = times(sizes, dtype, repeats)
    rows = [
        "| | bytes kept, MB | x LoRA | height of a step, MB | minus LoRA's, in weights | step, ms | x LoRA |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    weight = sizes[0] * sizes[1] * torch.finfo(getattr(torch, dtype)).bits // 8
    for name in NAMES:
        ratio = statistics.median(a / b for a, b in zip(taken[name], taken["LoRA"], strict=True))
        rows.append(
            f"| {name} | {bytes_kept[name] / 1e6:.1f} | {bytes_kept[name] / bytes_kept['LoRA']:.3f} "
            f"| {height[name] / 1e6:.0f} | {(height[name] - height['LoRA']) / weight:+.2f} "
            f"| {statistics.median(taken[name]) * 1e3:.0f} | {ratio:.2f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    parser.add_argument("--tiny", action="store_true", help="a small linear: to see that it works")
    parser.add_argument("--peak-of", choices=NAMES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.cores)
    sizes = TINY if asked.tiny else (OUT, IN, RANK, TOKENS)
    if asked.peak_of:
        print(peak(asked.peak_of, sizes, asked.dtype))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("ressa", "torch", "peft"))
    text = "\n".join(
        [
            "# SparseLoRA beside LoRA and the formula written out",
            "",
            f"{datetime.date.today()}, {platform.machine()}, {asked.cores} core, CPU, {asked.dtype}, seed 0, "
            f"{versions}. One linear {sizes[0]} x {sizes[1]}, half of its weights zero, rank {sizes[2]}, {sizes[3]} "
            f"tokens, forward and backward with the gradient of the input. Steps in turns, {asked.repeats} times; "
            "processor time; medians, of the ratios too.",
            "",
            *table(sizes, asked.dtype, asked.repeats, asked.tiny),
            "",
            "The floor of exact gradients is 1.5 x LoRA in operations of the linear: forward, the input's gradient and "
            "`G = dY^T X`, which the mask makes necessary, are 6 T O I; a frozen weight with LoRA does without G, "
            "4 T O I (the low-rank products, r / T and r / O of that, left out). Naive keeps W_eff; SparseLoRA "
            "recomputes W_eff in chunks of rows, and has no workspace of the size of a weight.",
            "",
        ]
    )
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
