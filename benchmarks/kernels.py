"""Products of packed weights with one token, streamed from memory: `python benchmarks/kernels.py`.

Writes benchmarks/results/kernels.md and kernels.json: microseconds of each, and how many times as fast as torch eager in
its faster dtype and as the dense kernel of the same values. Each matrix lies in memory many times (300 MB and more), and
is read from another place at each call, as a model's are; the contenders take turns in every repetition, so that what
else the machine does hits all of them; medians. `--ggml FOLDER` adds llama.cpp (a folder with its built libggml*.so), in
the layout that it repacks weights to on this processor. `--only 2048x8192 --threads 1` renews a part.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ressa.machine import processor, versions
from ressa.packed import native
from ressa.packed.format import pack

RESULTS = Path(__file__).parent / "results"
SHAPES = ("2048x8192", "4096x4096", "576x1536")
PATTERNS = ("dense", "2:4", "8:16", "4:16", "50%", "70%")
WANTED = {"bf16": PATTERNS, "int8": PATTERNS, "int4": ("dense", "2:4", "4:16")}
STREAM = 300 << 20  # bytes of all copies of one matrix
REPETITION = 100 << 20  # bytes that are read in one repetition
HUGE = 14  # MADV_HUGEPAGE
GGML = {"llama.cpp Q4_0": 2, "llama.cpp Q8_0": 8, "llama.cpp Q4_K": 12}  # ggml_type

Call = Callable[[int], None]  # the product with one of the copies


def pruned(shape: tuple[int, int], pattern: str) -> Tensor:
    """Gaussian weights of the pattern, bfloat16; which are kept is random."""
    weight_OI = torch.randn(shape, dtype=torch.bfloat16)
    weight_OI[weight_OI == 0] = 1
    if pattern == "dense":
        return weight_OI
    if pattern.endswith("%"):
        return weight_OI * (torch.rand(shape) >= int(pattern[:-1]) / 100)
    kept, of = map(int, pattern.split(":"))
    order = torch.rand(weight_OI.numel() // of, of).argsort(1)
    return weight_OI * (order < kept).view(shape)


def copies(tensor: Tensor, stream: int) -> list[Tensor]:
    """The tensor as often as fills `stream` bytes, in large pages as `native.prepare` asks for them."""
    count = -(-stream // tensor.nbytes)
    libc, made = ctypes.CDLL(None), []
    for _ in range(count):
        copy = torch.empty_like(tensor)
        first, last = -(-copy.data_ptr() >> 21 << 21), (copy.data_ptr() + copy.nbytes) >> 21 << 21
        first = (copy.data_ptr() + (1 << 21) - 1) >> 21 << 21
        if last > first:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), HUGE)
        made.append(copy.copy_(tensor))
    return made


def kernel(weight_OI: Tensor, kind: str, x_I: Tensor, stream: int) -> tuple[Call, int, int]:
    """(product, number of copies, bytes of one) of a kernel of ours; called as `native.matvec` does, without its checks."""
    prepared = native.prepare(pack(weight_OI, kind))
    assert prepared is not None
    made, library, y = copies(prepared, stream), native.library(), torch.empty(len(weight_OI), dtype=x_I.dtype)
    assert library is not None
    at, size, x = [copy.data_ptr() for copy in made], prepared.nbytes, x_I.data_ptr()
    dtype, threads, out = native.DTYPES[x_I.dtype], torch.get_num_threads(), y.data_ptr()

    def call(i: int, held: object = (made, x_I, y)) -> None:
        library.ressa_matvec(at[i], size, x, None, out, dtype, 1, threads)

    return call, len(made), size


def eager(weight_OI: Tensor, x_I: Tensor, dtype: torch.dtype, stream: int) -> tuple[Call, int, int]:
    made, x = copies(weight_OI.to(dtype), stream), x_I.to(dtype)

    def call(i: int) -> None:
        functional.linear(x, made[i])

    return call, len(made), made[0].nbytes


def measured(contenders: dict[str, tuple[Call, int, int]], repetitions: int) -> dict[str, list[float]]:
    """{name: microseconds of one product, repetition by repetition}."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    place = dict.fromkeys(contenders, 0)
    for repetition in range(repetitions + 1):
        for name, (call, count, size) in contenders.items():
            calls = max(1, min(count, REPETITION // size))
            started = time.perf_counter()
            for i in range(place[name], place[name] + calls):
                call(i % count)
            took = (time.perf_counter() - started) / calls * 1e6
            place[name] = (place[name] + calls) % count
            if repetition:
                seconds[name].append(took)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--kinds", nargs="+", default=list(WANTED), choices=list(WANTED))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--stream", type=int, default=STREAM)
    parser.add_argument("--ggml", type=Path)
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    asked = parser.parse_args()
    torch.manual_seed(0)
    for shape in (asked.only,) if asked.only else SHAPES:
        for threads in asked.threads:
            torch.set_num_threads(threads)
            one(shape, threads, asked)


def one(shape: str, threads: int, asked: argparse.Namespace) -> None:
    outputs, inputs = map(int, shape.split("x"))
    x_I = torch.randn(inputs, dtype=torch.bfloat16)
    for kind in asked.kinds:
        contenders = {
            f"torch {name}": eager(pruned((outputs, inputs), "dense"), x_I, dtype, asked.stream)
            for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items()
        }
        for pattern in WANTED[kind]:
            contenders[pattern] = kernel(pruned((outputs, inputs), pattern), kind, x_I, asked.stream)
        told = measured(contenders, asked.repetitions)
        torch_ = [min(a, b) for a, b in zip(told["torch bf16"], told["torch fp32"], strict=True)]
        for name, us in told.items():
            ratio = statistics.median(d / s for d, s in zip(told["dense"], us, strict=True))
            ratio_torch = statistics.median(d / s for d, s in zip(torch_, us, strict=True))
            size = contenders[name][2]
            print(
                f"{shape} {threads}t {kind} {name:10} {statistics.median(us):8.1f} us {size / statistics.median(us) / 1e3:6.1f} GB/s "
                f"{ratio:5.2f} x dense (bytes {contenders['dense'][2] / size:.2f}), {ratio_torch:5.2f} x torch",
                flush=True,
            )


if __name__ == "__main__":
    main()
