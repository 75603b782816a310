"""What every ressa.json says of how it came about: versions, memory, and arguments as JSON can hold them."""

from __future__ import annotations

import contextlib
import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("ressa", "torch", "transformers")


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
    if status.is_file() and (told := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(told[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; an object that is no path (a dataset) is named by its type."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return str(value) if isinstance(value, Path | torch.device) else type(value).__name__
