"""The library of kernels (`kernels/`, C++) and what is handed to it: prepared weights, products of at most 8 tokens.

It is built when ressa is installed and a compiler is there, and links to nothing: its threads are those of the OpenMP
that torch has loaded. `RESSA_KERNELS` names a set of kernels (`avx512`, `avx2`, `neon`, `scalar`), or `none`.

Shapes: O outputs, I inputs, T tokens.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ressa.errors import RessaError, unknown
from ressa.packed.format import FLOATS, SCALES, Packed

ABI, NO_KERNEL = 1, -7  # of the header
VARIABLE = "RESSA_KERNELS"
TOKENS = 8  # of one call at most; with more it is faster to unpack
KINDS = {"bf16": 0, "int8": 1, "int4": 2}
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
DONTNEED = 4  # MADV_DONTNEED
PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
NONE, SCALAR = "none", "scalar"  # scalar is slower than unpacking: only who asks gets it


class _Stored(ctypes.Structure):
    """`ressa_stored` of the header."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("values_bytes", ctypes.c_int64),
        ("bitmask", ctypes.c_void_p),
        ("bitmask_bytes", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("scale_bytes", ctypes.c_int64),
    )


class _Told(ctypes.Structure):
    """`ressa_told` of the header."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "isa", "layout", "bits")),
        *((name, ctypes.c_int64) for name in ("rows", "cols", "group", "kept", "scales")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The library, with torch's threads; None where none was built, or one of another version."""
    for path in Path(__file__).parent.glob("_kernels*"):
        try:
            found = ctypes.CDLL(str(path))
            found.ressa_abi.restype = ctypes.c_int32
            if found.ressa_abi() == ABI:
                return _described(found)
        except (OSError, AttributeError):  # built for another platform, or something else of that name
            continue
    return None


def _described(found: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    found.ressa_message.restype = found.ressa_isa.restype = ctypes.c_char_p
    found.ressa_prepared_bytes.restype = size
    for name in ("prepare", "tell", "matvec", "unpack", "restore", "runs"):
        getattr(found, f"ressa_{name}").restype = number
    found.ressa_prepared_bytes.argtypes = [number, pointer]
    found.ressa_prepare.argtypes = [number, pointer, pointer, size]
    found.ressa_matvec.argtypes = [pointer, size, pointer, pointer, pointer, number, number, number]
    found.ressa_unpack.argtypes = [pointer, size, pointer, number, number]
    found.ressa_restore.argtypes = found.ressa_tell.argtypes = [pointer, size, pointer]
    found.ressa_use_threads.argtypes = [pointer] * 3
    found.ressa_use_threads.restype = None
    found.ressa_use_threads(*_threads())
    return found


def _threads() -> tuple[int | None, int | None, int | None]:
    """Addresses in the OpenMP that torch has loaded: a second one beside it would fight it for the cores."""
    maps = Path("/proc/self/maps")
    text = maps.read_text(errors="replace") if maps.is_file() else ""
    for path in dict.fromkeys(re.findall(r"(?m)\s(/\S*lib(?:gomp|iomp5|omp)\b[^/\n]*)$", text)):
        try:
            openmp = ctypes.CDLL(path)
            names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            parallel, own, all_ = (ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value for name in names)
            return parallel, own, all_
        except (OSError, AttributeError):
            continue
    return None, None, None


def names() -> dict[str, int]:
    """{set of kernels that this processor can run: its number}, the best first; empty without a library."""
    found, built = library(), {}
    number = 0
    while found and (name := found.ressa_isa(number)) is not None:
        if name and found.ressa_runs(number):
            built[name.decode()] = number
        number += 1
    return built


def chosen() -> str | None:
    """The set of kernels that weights are prepared for; None for none.

    Raises:
        RessaError: `RESSA_KERNELS` names what was not built or what this processor cannot run.
    """
    asked, known = os.environ.get(VARIABLE), names()
    if asked:
        if asked != NONE and asked not in known:
            raise unknown(f"set of kernels in {VARIABLE}", asked, (NONE, *known))
        return None if asked == NONE else asked
    return next((name for name in known if name != SCALAR), None)


def wanted() -> bool:
    """Whether nobody said that there should be none."""
    return os.environ.get(VARIABLE) != NONE


def why_none() -> str:
    """Why there are none for some values, for people."""
    if library() is None:
        return "none were built: install ressa where a C++ compiler is"
    if (name := chosen()) is None:
        return "none for this processor"
    return f"the set {name} takes bf16, int8, and int4 in groups of a multiple of 32, on the CPU"


def prepare(packed: Packed) -> Tensor | None:
    """(bytes,) uint8: the weight as the chosen kernels read it; None if they take none of its kind.

    Raises:
        RessaError: what is stored contradicts itself.
    """
    name, found = chosen(), library()
    if name is None or found is None or packed.kind not in KINDS or packed.values.device.type != "cpu":
        return None
    stored, number = _stored(packed), names()[name]
    size = found.ressa_prepared_bytes(number, ctypes.byref(stored))
    if size == NO_KERNEL:
        return None
    _unless_refused(min(size, 0))
    with torch.inference_mode(False):  # pages of its own: between what is soon freed, the heap would keep holes
        out = torch.frombuffer(mmap.mmap(-1, size, **PRIVATE), dtype=torch.uint8)
    _unless_refused(found.ressa_prepare(number, ctypes.byref(stored), out.data_ptr(), size))
    return out


def forget(stored: Tensor) -> None:
    """Gives back the memory of a tensor that lies in a mapped file and that nobody will read again. On Linux alone."""
    first = -(-stored.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (stored.data_ptr() + stored.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), DONTNEED)


def told(prepared: Tensor) -> Packed:
    """The shape, kind and sizes of a prepared weight, as a Packed of empty tensors. Raises RessaError if it is none."""
    told = _Told()
    _unless_refused(_library().ressa_tell(*_bytes(prepared), ctypes.byref(told)))
    kind = next(name for name, number in KINDS.items() if number == told.kind)
    rows, columns = told.rows, told.cols
    if kind in FLOATS:
        values = torch.empty(told.kept, dtype=FLOATS[kind])
    else:
        size = told.kept if kind == "int8" else -(-told.kept // 2)
        values = torch.empty(size, dtype=torch.int8 if kind == "int8" else torch.uint8)
    bitmask = torch.empty(rows, -(-columns // 8), dtype=torch.uint8) if told.bits else None
    scale = torch.empty(told.scales, dtype=SCALES[kind]) if kind in SCALES else None
    return Packed((rows, columns), values, bitmask, scale, told.group or 64)


def restore(prepared: Tensor) -> Packed:
    """The weight as it was stored, bit for bit. Raises RessaError as `told`."""
    packed = told(prepared)
    _unless_refused(_library().ressa_restore(*_bytes(prepared), ctypes.byref(_stored(packed))))
    return packed


def unpack(prepared: Tensor, out_OI: Tensor) -> Tensor:
    """Writes the dense weight into `out_OI`, float32 or bfloat16, and returns it. Raises RessaError as `told`."""
    threads = torch.get_num_threads()
    code = _library().ressa_unpack(*_bytes(prepared), out_OI.data_ptr(), DTYPES[out_OI.dtype], threads)
    _unless_refused(code)
    return out_OI


def matvec(prepared: Tensor, x_TI: Tensor, bias_O: Tensor | None, outputs: int) -> Tensor:
    """(T, O): x times the prepared weight, plus bias. x is float32 or bfloat16 and contiguous, T from 1 to TOKENS.

    Raises:
        RessaError: as `told`, or more tokens.
    """
    y_TO = x_TI.new_empty(x_TI.shape[0], outputs)
    bias = None if bias_O is None else bias_O.data_ptr()
    x, y, dtype = x_TI.data_ptr(), y_TO.data_ptr(), DTYPES[x_TI.dtype]
    threads = torch.get_num_threads()
    _unless_refused(_library().ressa_matvec(*_bytes(prepared), x, bias, y, dtype, x_TI.shape[0], threads))
    return y_TO


def _library() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RessaError("this weight was prepared for kernels that are not there; load its folder again")
    return found


def _bytes(prepared: Tensor) -> tuple[int, int]:
    return prepared.data_ptr(), prepared.nbytes


def _stored(packed: Packed) -> _Stored:
    pairs: list[int | None] = []
    for tensor in (packed.values, packed.bitmask, packed.scale):
        pairs += [None, 0] if tensor is None else [tensor.data_ptr(), tensor.nbytes]
    return _Stored(KINDS[packed.kind], 0, *packed.shape, packed.group, *pairs)


def _unless_refused(code: int) -> None:
    if code:
        raise RessaError(f"packed weight: {_library().ressa_message(code).decode()}")
