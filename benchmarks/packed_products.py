"""Products of packed weights with one token, streamed from memory: `python benchmarks/packed_products.py`.

Writes results/packed_products.json and .md: microseconds of each product, and how many times as fast it is as torch
eager in its faster dtype, and as our dense kernel of the same kind of values. Each matrix lies in memory many
times (300 MB and more), and every call reads another copy, as decoding reads a model's layers. The contenders take
turns, so that what else the machine does hits all of them. Medians, of ratios within a turn of all too.

`--ggml FOLDER` adds llama.cpp, from a folder with its libggml-base.so and libggml-cpu.so: weights in the layout that
it repacks them to on x86 (it has none for Q8_0), all copies in one graph. `--only 2048x8192 --kinds int8` renews one.
As on a processor without AVX-512: `RESSA_KERNELS=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` before it.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ressa.machine import processor, versions
from ressa.packed import native
from ressa.packed.format import pack

RESULTS = Path(__file__).parent / "results"
SHAPES = ("2048x8192", "4096x4096", "576x1536")
PATTERNS = ("dense", "2:4", "8:16", "4:16", "50%", "70%")
KINDS = {"bf16": PATTERNS, "int8": PATTERNS, "int4": ("dense", "2:4", "4:16")}
Q4_0, Q8_0, Q4_K = 2, 8, 12  # ggml_type
LLAMA = {"int8": {"llama.cpp Q8_0": Q8_0}, "int4": {"llama.cpp Q4_0": Q4_0, "llama.cpp Q4_K": Q4_K}}
STREAM, TURN = 300 << 20, 100 << 20  # bytes of all copies of a matrix; bytes that are read in one turn
HUGE_PAGES = 14  # MADV_HUGEPAGE

INTRODUCTION = """# Products of packed weights with one token

`python benchmarks/packed_products.py`: microseconds of a product, and how many times as fast it is as torch eager in
its faster dtype (x torch), and as our dense kernel of the same kind of values (x dense). Gaussian weights, random
patterns, every call reads another copy of the matrix from memory; contenders take turns; medians, of ratios within a
turn too. int8 and
int4 round the activations to 8 bits, in our kernels and in llama.cpp's (llama-cpp-python 0.3.36, built here with
GGML_NATIVE and its own threads: two of them were slower than one for Q8_0 and Q4_0, why was not looked into, so compare
with it on one).

Two processors: an AMD EPYC of family 26 (Zen 5), and an Intel Xeon with AMX (Sapphire Rapids or newer). The Xeon's two
cores had five to ten other processes to run meanwhile: its times are those of one thread on the processor, memory was
shared, ratios are worth 10 to 15 %, and two threads could not be measured. The EPYC was measured before weights were
asked for nearer ahead and before avx2 took bits for the positions of 8:16 (then 9.5 and 5.5 bits a weight)."""


@dataclass
class Contender:
    """`run(first, count)` multiplies with `count` of its `copies` copies of `bytes`, from copy `first` on."""

    run: Callable[[int, int], None]
    copies: int
    bytes: int
    at_once: bool = False  # all copies in each turn

    def turn(self, turn: int) -> float:
        """Microseconds of one product; of one thread, its own on the processor, which others may hold meanwhile."""
        count = self.copies if self.at_once else max(1, min(self.copies, TURN // self.bytes))
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        started = clock()
        self.run(turn * count % self.copies, count)
        return (clock() - started) / count * 1e6


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


def copies(tensor: Tensor) -> list[Tensor]:
    """The tensor as often as fills STREAM bytes, in large pages as `native.prepare` asks for them."""
    libc, made, page = ctypes.CDLL(None), [], 2 << 20
    for _ in range(-(-STREAM // tensor.nbytes)):
        copy = torch.empty_like(tensor)
        first, last = -(-copy.data_ptr() // page) * page, (copy.data_ptr() + copy.nbytes) // page * page
        if last > first:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), HUGE_PAGES)
        made.append(copy.copy_(tensor))
    return made


def kernel(weight_OI: Tensor, kind: str, x_I: Tensor) -> Contender:
    """Ours, called as `native.matvec` calls it."""
    prepared, library = native.prepare(pack(weight_OI, kind)), native.library()
    assert prepared is not None
    assert library is not None
    made, y_O = copies(prepared), torch.empty(len(weight_OI), dtype=x_I.dtype)
    at, size, x, y = [copy.data_ptr() for copy in made], prepared.nbytes, x_I.data_ptr(), y_O.data_ptr()
    dtype = native.DTYPES[x_I.dtype]

    def run(first: int, count: int, held: object = (made, x_I, y_O)) -> None:
        threads = torch.get_num_threads()
        for i in range(first, first + count):
            library.ressa_matvec(at[i % len(at)], size, x, None, y, dtype, 1, threads)

    return Contender(run, len(made), size)


def eager(weight_OI: Tensor, x_I: Tensor, dtype: torch.dtype) -> Contender:
    made, x_I = copies(weight_OI.to(dtype)), x_I.to(dtype)

    def run(first: int, count: int) -> None:
        for i in range(first, first + count):
            functional.linear(x_I, made[i % len(made)])

    return Contender(run, len(made), made[0].nbytes)


class Params(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """What is needed of llama.cpp's libraries."""

    def __init__(self, folder: Path) -> None:
        self.base = ctypes.CDLL(str(next(folder.glob("libggml-base.so"))), ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(next(folder.glob("libggml-cpu.so"))))

    def __call__(self, name: str, *words: Any, gives: Any = ctypes.c_void_p) -> Any:
        function = getattr(self.cpu if hasattr(self.cpu, name) else self.base, name)
        function.restype = gives
        sized = [ctypes.c_int64(w) if isinstance(w, int) else w for w in words]
        return function(*sized)

    def pointer(self, name: str, *words: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(self(name, *words))

    def repacked(self) -> ctypes.c_void_p:
        """Its kind of buffer whose weights are in the layout of this processor; else the plain one."""
        registry = self.pointer("ggml_backend_cpu_reg")
        device = self.pointer("ggml_backend_reg_dev_get", registry, 0)
        get = self("ggml_backend_reg_get_proc_address", registry, ctypes.c_char_p(b"ggml_backend_dev_get_extra_bufts"))
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(get)(device)
        for kind in kinds:
            if kind is None:
                break
            name = self("ggml_backend_buft_name", ctypes.c_void_p(kind), gives=ctypes.c_char_p)
            if name == b"CPU_REPACK":
                return ctypes.c_void_p(kind)
        return self.pointer("ggml_backend_cpu_buffer_type")


def llama(ggml: Ggml, number: int, shape: tuple[int, int]) -> Contender:
    """All copies in one graph: products with the same token, each with another copy."""
    outputs, inputs = shape
    rows, kind = torch.randn(outputs, inputs), ctypes.c_int(number)
    size = ggml("ggml_row_size", kind, inputs, gives=ctypes.c_size_t) * outputs
    stored = ctypes.create_string_buffer(size)
    source = ctypes.c_void_p(rows.data_ptr())
    ggml("ggml_quantize_chunk", kind, source, stored, 0, outputs, inputs, None, gives=ctypes.c_size_t)
    count = -(-STREAM // size)
    weights, others = (ggml.pointer("ggml_init", Params((count + 8) * 2048 + (1 << 20), None, True)) for _ in range(2))
    made = [ggml.pointer("ggml_new_tensor_2d", weights, kind, inputs, outputs) for _ in range(count)]
    x = ggml.pointer("ggml_new_tensor_2d", others, ctypes.c_int(0), inputs, 1)
    graph = ggml.pointer("ggml_new_graph_custom", others, count + 8, ctypes.c_bool(False))
    for weight in made:
        ggml("ggml_build_forward_expand", graph, ggml.pointer("ggml_mul_mat", others, weight, x), gives=None)
    plain = ggml.pointer("ggml_backend_cpu_buffer_type")
    ggml("ggml_backend_alloc_ctx_tensors_from_buft", weights, plain if number == Q8_0 else ggml.repacked())
    ggml("ggml_backend_alloc_ctx_tensors_from_buft", others, plain)
    for weight in made:
        ggml("ggml_backend_tensor_set", weight, stored, 0, size, gives=None)
    token = torch.randn(inputs)
    ggml("ggml_backend_tensor_set", x, ctypes.c_void_p(token.data_ptr()), 0, token.nbytes, gives=None)
    backend = ggml.pointer("ggml_backend_cpu_init")

    def run(first: int, count: int) -> None:
        ggml("ggml_backend_cpu_set_n_threads", backend, ctypes.c_int(torch.get_num_threads()), gives=None)
        assert ggml("ggml_backend_graph_compute", backend, graph, gives=ctypes.c_int) == 0

    return Contender(run, count, size, at_once=True)


def contenders(shape: tuple[int, int], kind: str, ggml: Ggml | None) -> dict[str, Contender]:
    x_I = torch.randn(shape[1], dtype=torch.bfloat16)
    dense_OI = pruned(shape, "dense")
    made = {f"torch {name}": eager(dense_OI, x_I, getattr(torch, name)) for name in ("bfloat16", "float32")}
    made |= {pattern: kernel(pruned(shape, pattern), kind, x_I) for pattern in KINDS[kind]}
    named = LLAMA.get(kind, {}) if ggml else {}
    return made | {name: llama(ggml, number, shape) for name, number in named.items() if ggml}


def measured(made: dict[str, Contender], threads: int, repetitions: int) -> list[dict[str, Any]]:
    """One line for each contender."""
    torch.set_num_threads(threads)
    turns = [{name: one.turn(turn) for name, one in made.items()} for turn in range(repetitions + 1)][1:]
    lines = []
    for name, one in made.items():
        torch_ = statistics.median(min(t["torch bfloat16"], t["torch float32"]) / t[name] for t in turns)
        dense = statistics.median(t["dense"] / t[name] for t in turns)
        us = statistics.median(t[name] for t in turns)
        line = {"name": name, "threads": threads, "us": us, "bytes": one.bytes, "x_dense": dense, "x_torch": torch_}
        print(" ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in line.items()))
        lines.append(line)
    return lines


def report(lines: list[dict[str, Any]]) -> list[str]:
    """Tables, one for each processor, set of kernels, shape and number of threads."""
    text, keys = [], ("processor", "set", "shape", "threads")
    for place in dict.fromkeys(tuple(line[key] for key in keys) for line in lines):
        told = [line for line in lines if tuple(line[key] for key in keys) == place]
        processor_, set_, shape, threads = place
        where = (
            f"{set_} kernels, torch {told[0]['torch']} ({told[0].get('torch_has', 'all it knows')}), {told[0]['date']}"
        )
        text += ["", f"## {shape.replace('x', ' x ')}, {threads} thread{'s'[: threads > 1]}, {processor_}, {set_}", ""]
        text += [
            where,
            "",
            "| values | | bits a weight | us | GB/s | x dense | x torch |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        outputs, inputs = map(int, shape.split("x"))
        for line in told:
            bits, speed = line["bytes"] * 8 / outputs / inputs, line["bytes"] / line["us"] / 1e3
            cells = f"{bits:.2f} | {line['us']:.0f} | {speed:.1f} | {line['x_dense']:.2f} | {line['x_torch']:.2f}"
            text.append(f"| {line['kind']} | {line['name']} | {cells} |")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SHAPES, nargs="+", default=SHAPES)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--ggml", type=Path)
    asked = parser.parse_args()
    torch.manual_seed(0)
    path, ggml = RESULTS / "packed_products.json", Ggml(asked.ggml) if asked.ggml else None
    lines = json.loads(path.read_text()) if path.exists() else []
    machine = {"processor": processor()["processor"], "set": native.chosen()}
    machine |= {"torch": versions()["torch"], "torch_has": torch.backends.cpu.get_cpu_capability()}
    machine |= {"date": str(datetime.date.today())}
    for shape in asked.only:
        outputs, inputs = map(int, shape.split("x"))
        for kind in asked.kinds:
            made = contenders((outputs, inputs), kind, ggml)
            for threads in asked.threads:
                place = machine | {"shape": shape, "kind": kind}
                new = [place | line for line in measured(made, threads, asked.repetitions)]
                same = ("processor", "set", "shape", "kind", "threads")
                lines = [line for line in lines if any(line[key] != new[0][key] for key in same)] + new
    order = [*KINDS]  # what was renewed comes at its place
    lines.sort(
        key=lambda at: (at["processor"], at["set"], SHAPES.index(at["shape"]), at["threads"], order.index(at["kind"]))
    )
    path.write_text(json.dumps(lines, indent=1) + "\n")
    (RESULTS / "packed_products.md").write_text("\n".join([INTRODUCTION, *report(lines)]) + "\n")


if __name__ == "__main__":
    main()
