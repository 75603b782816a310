"""Whether a folder's weights are what its config describes, and numbers: found out before any work, by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ressa.errors import RessaError, RessaWarning

LFS = b"version https://git-lfs"
PLAIN = ("F16", "BF16", "F32", "F64")  # as safetensors spells dtypes
PACKED = "is stored as {}, and the config says of no quantisation how to read it"
SCALE = "_scale_inv"  # what transformers multiplies 8-bit floats in blocks with
SCALES = (SCALE, "weight_scale", "weight_zero_point", ".scales", ".qzeros", ".absmax")
PIECE = 1 << 22  # numbers of float8 that are looked at together, in float32
LARGER = 4  # a config that describes so many times as many weights as there are is of another model


def check_stored(name: Any, folder: str, described: int, quantised: bool) -> None:
    """Looks at the safetensors of a local folder, without reading a weight; of a hub name nothing.

    Args:
        described: how many weights the config describes.
        quantised: whether the config says that they are.

    Raises:
        RessaError: a Git LFS pointer in place of a file, a matrix of integers or 8-bit floats that no config explains,
            or far fewer weights than the config describes: transformers would first make all of them up.
    """
    if not Path(folder).is_dir():
        return
    files = sorted(Path(folder).glob("model*.safetensors"))
    tensors = {key: (shape, dtype) for file in files for key, shape, dtype in _headers(name, file)}
    stored = sum(math.prod(shape) for shape, _ in tensors.values())
    for key, (shape, dtype) in tensors.items():
        if len(shape) > 1 and dtype not in PLAIN and not quantised:
            raise RessaError(f"{name}: {key} {PACKED.format(dtype)}; name the model that it was made from")
        if dtype.startswith("F8_E4M3") and f"{key}{SCALE}" not in tensors:
            raise RessaError(f"{name}: {key} is stored in 8 bits without its scale ({key}{SCALE})")
    if files and not quantised and stored * LARGER < described:
        raise RessaError(f"{name}: the folder holds {stored:,} weights and its config describes {described:,}")
    if len(files) > 1 and files[-1].name == "model.safetensors":
        warnings.warn(
            f"{name}: holds model.safetensors and shards beside it, which are not read", RessaWarning, stacklevel=4
        )


def _headers(name: Any, file: Path) -> Iterator[tuple[str, list[int], str]]:
    """(key, shape, dtype) of every tensor in a file."""
    with file.open("rb") as stream:
        if stream.read(len(LFS)) == LFS:
            raise RessaError(f"{name}: {file.name} is a Git LFS pointer, no weights: fetch them with 'git lfs pull'")
    try:
        with safe_open(file, framework="pt", backend="pread") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (no dict)
                part = tensors.get_slice(key)
                yield key, part.get_shape(), part.get_dtype()
    except SafetensorError as error:
        raise RessaError(
            f"{name}: its weights cannot be loaded from safetensors: {file.name} is damaged ({error})"
        ) from None


def check_loaded(name: Any, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Raises RessaError for weights that are missing, of another shape or no numbers; warns of those left over.

    Args:
        info: what `from_pretrained` told of the loading.
    """
    if missing := sorted(info["missing_keys"]):
        # transformers would go on with random values in their place
        raise RessaError(f"{name}: {len(missing)} weights are missing from the folder, the first is {missing[0]}")
    if other := sorted(info["mismatched_keys"]):
        key, there, here = other[0]
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise RessaError(f"{name}: {key} is {_shape(there)} in the folder and {_shape(here)} by its config{more}")
    check_finite(name, model)
    if scales := sorted(key for key in info["unexpected_keys"] if key.endswith(SCALES)):
        raise RessaError(
            f"{name}: {len(scales)} scales of quantised weights belong to nothing in the model, the first is "
            f"{scales[0]}: the weights would be read without them; name the model that it was made from"
        )
    if left := sorted(info["unexpected_keys"]):
        warnings.warn(
            f"{name}: {len(left)} tensors of the folder belong to nothing in the model and are left out, "
            f"the first is {left[0]}",
            RessaWarning,
            stacklevel=4,
        )


def check_finite(name: Any, model: nn.Module) -> None:
    """Raises RessaError naming the first parameter that holds NaN or infinity; of what is not in memory nothing."""
    check_numbers(name, ((key, parameter) for key, parameter in model.named_parameters() if not parameter.is_meta))


def check_numbers(name: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises RessaError naming the first of these tensors that holds NaN or infinity."""
    for key, parameter in tensors:
        if parameter.is_floating_point() and not _finite(parameter.detach()):
            found = parameter.detach().float()
            bad = int((~found.isfinite()).sum())
            kind = "NaN" if found.isnan().any() else "infinity"
            raise RessaError(f"{name}: {key} holds {kind} ({bad:,} of its {found.numel():,} numbers are none)")


def _finite(tensor: Tensor) -> bool:
    """Whether every number is: least and largest are NaN if any is."""
    pieces = [tensor] if tensor.itemsize > 1 else (piece.float() for piece in tensor.flatten().split(PIECE))
    return all(bool(end.isfinite()) for piece in pieces if piece.numel() for end in piece.aminmax())


def _shape(shape: Any) -> str:
    return f"({', '.join(map(str, shape))})"
