"""One policy for every verb: on which device it computes, and in which number format products are computed.

What products are computed in is apart from what a folder stores: a bfloat16 model is computed in float32 where the
processor has no bfloat16 products of its own, and is written in bfloat16 all the same. `decide` is arithmetic on facts;
`found` reads them from this machine.
"""

from __future__ import annotations

import contextlib
import platform
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ressa.errors import RessaError, RessaWarning, unknown

AUTO = "auto"
PACKAGES = ("ressa", "torch", "transformers")  # which decide every result
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ACCELERATORS = ("cuda", "xpu", "mps")  # in the order in which auto takes them


@dataclass(frozen=True)
class Found:
    """What decides: {type of accelerator: how many}, the best first; and which types multiply bfloat16 natively."""

    accelerators: dict[str, int]
    native_bf16: frozenset[str]

    @property
    def first(self) -> str:
        """What `auto` stands for."""
        return next(iter(self.accelerators), "cpu")


@dataclass(frozen=True)
class Machine:
    """Where one model is computed and in what; `stored` is the dtype that its folder keeps."""

    device: torch.device
    compute: torch.dtype
    stored: torch.dtype

    @property
    def block_device(self) -> torch.device | None:
        """The device that blocks move to one at a time; None where the model is loaded, on the CPU."""
        return None if self.device == torch.device("cpu") else self.device

    @property
    def working(self) -> torch.dtype:
        """The dtype of weights while they are changed: never narrower than what is stored or computed in."""
        return torch.promote_types(self.stored, self.compute)

    @property
    def autocast(self) -> torch.dtype | None:
        """What autocast must turn products into, because the weights stay wider than that; else None."""
        return None if self.working == self.compute else self.compute

    def describe(self) -> dict[str, Any]:
        """What ressa.json and scores.json say of it."""
        compute, stored = (str(dtype).removeprefix("torch.") for dtype in (self.compute, self.stored))
        threads = torch.get_num_threads()
        return {"device": str(self.device), "compute": compute, "stored": stored, "threads": threads} | processor()


def machine(device: str | torch.device, dtype: str, stored: torch.dtype) -> Machine:
    """The choice on this machine. Warns, with the ratio, where a dtype is asked for that is slow there.

    Raises:
        RessaError: a device that is not there, or an unknown dtype.
    """
    where, compute = decide(str(device), dtype, stored, found())
    if where == "cpu" and compute not in native("cpu", found()) and (times := slower(compute)) > 1.5:
        warnings.warn(
            f"dtype {dtype}: this processor multiplies it {times:.0f} times slower than float32 (measured just now); "
            "leave the dtype to auto",
            RessaWarning,
            stacklevel=3,
        )
    return Machine(torch.device(where), compute, stored)


def decide(device: str, dtype: str, stored: torch.dtype, there: Found) -> tuple[str, torch.dtype]:
    """(device, what products are computed in).

    `auto` takes the first accelerator there is, else the CPU; and computes in what is stored where the device
    multiplies that natively, else in float32. It never computes in less than is stored.

    Raises:
        RessaError: a device that is not there, or an unknown dtype.
    """
    known = {"cpu": "cpu"} | {f"{name}:{i}": name for name, n in there.accelerators.items() for i in range(n)}
    if device == AUTO:
        device = there.first
    elif device not in (*known, *known.values()):
        raise RessaError(f"device: '{device}' is not on this machine, which has {', '.join(known)}")
    if dtype != AUTO and dtype not in DTYPES:
        raise unknown("dtype", dtype, (AUTO, *DTYPES))
    if dtype != AUTO:
        return device, DTYPES[dtype]
    return device, stored if stored in native(device, there) else torch.float32


def check_machine(device: str, dtype: str, threads: int | None = None) -> None:
    """Take the threads that are asked for; raises RessaError as `decide` does, before there is a model to compute."""
    decide(device, dtype, torch.float32, found())
    if threads:
        torch.set_num_threads(threads)


def native(device: str, there: Found) -> set[torch.dtype]:
    """The number formats that a device multiplies at full speed."""
    kind = device.partition(":")[0]
    half = {torch.float16} if kind != "cpu" else set()
    return {torch.float32} | half | ({torch.bfloat16} if kind in there.native_bf16 else set())


@cache
def found() -> Found:
    """The accelerators that torch can use here, and which devices multiply bfloat16 natively."""
    counts = {name: _count(name) for name in ACCELERATORS}
    native = {name for name, count in counts.items() if count and _accelerator_has_bf16(name)}
    return Found({name: count for name, count in counts.items() if count}, frozenset(native | _cpu_bf16()))


def cpu_has_bf16(onednn: bool, avx512_bf16: bool, amx: bool, architecture: str, capability: str) -> bool:
    """Whether a CPU multiplies bfloat16 natively.

    Args:
        onednn: whether oneDNN, which computes torch's products, says it can; on AVX-512 without bfloat16 it can, by
            float32, at half the speed. It respects ONEDNN_MAX_CPU_ISA.
        avx512_bf16, amx: instructions of an x86-64 processor.
        architecture: as `platform.machine` gives it.
        capability: what torch's own kernels use; held to less than AVX-512 (ATEN_CPU_CAPABILITY), its attention in
            bfloat16 fails beside a oneDNN that has AMX.
    """
    if architecture.lower() in ("aarch64", "arm64"):
        return onednn
    return onednn and (avx512_bf16 or amx) and capability.startswith("AVX512")


def _cpu_bf16() -> set[str]:
    def says(space: Any, name: str) -> bool:  # names that torch keeps to itself: where one is gone, float32 is right
        return bool(getattr(space, name, lambda: False)())

    onednn = says(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.backends.mkldnn.is_available()
    avx512_bf16, amx = says(torch.cpu, "_is_avx512_bf16_supported"), says(torch.cpu, "_is_amx_tile_supported")
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu"} if cpu_has_bf16(onednn, avx512_bf16, amx, platform.machine(), capability) else set()


def _count(kind: str) -> int:
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    space = getattr(torch, kind, None)
    return space.device_count() if space is not None and space.is_available() else 0


def _accelerator_has_bf16(kind: str) -> bool:
    if kind == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return getattr(torch, kind).is_bf16_supported(including_emulation=False)


@cache
def slower(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a product of 1024 x 768 by 768 x 256 takes on this CPU, one thread."""

    def seconds(kind: torch.dtype) -> float:
        x_TI, weight_OI = torch.ones(1024, 768, dtype=kind), torch.ones(256, 768, dtype=kind)
        torch.nn.functional.linear(x_TI[:64], weight_OI)
        started = time.perf_counter()
        torch.nn.functional.linear(x_TI, weight_OI)
        return time.perf_counter() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(seconds(dtype) for _ in range(2)) / min(seconds(torch.float32) for _ in range(2))
    finally:
        torch.set_num_threads(threads)


@contextmanager
def products_in(dtype: torch.dtype | None, *devices: torch.device) -> Iterator[None]:
    """Products in `dtype` on these devices; as the tensors are for None."""
    with ExitStack() as stack:
        for kind in {device.type for device in devices} if dtype else ():
            stack.enter_context(torch.autocast(kind, dtype))
        yield


@cache
def processor() -> dict[str, Any]:
    """{"processor": its name, "capability": the vector instructions torch uses, "gpus": their names if any}."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    gpus = [torch.cuda.get_device_name(i) for i in range(found().accelerators.get("cuda", 0))]
    return {"processor": name, "capability": torch.backends.cpu.get_cpu_capability()} | ({"gpus": gpus} if gpus else {})


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, of the packages that decide every result, and of `more` packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in (*PACKAGES, *more)}


def forget_peak() -> None:
    """Lets `peak_memory` begin anew, where the system can: with CUDA, and on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most this process has held so far, in bytes: on the GPU if it used one, else in main memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # unlike getrusage, it forgets when told to
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_there(device: torch.device) -> int | None:
    """The bytes that are free on a GPU, or that this process may still take of the main memory; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if device.type != "cpu" or not info.is_file():
        return None
    free = [int(found) * 1024 for found in re.findall(r"MemAvailable:\s+(\d+) kB", info.read_text())]
    with contextlib.suppress(OSError, ValueError):  # a container may have less than its machine
        most, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(max(0, most - used))
    return min(free, default=None)


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; an object that is no path (a dataset) is named by its type."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return str(value) if isinstance(value, Path | torch.device) else type(value).__name__
