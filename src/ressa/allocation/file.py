"""An allocation as a file: {"unit": "block", "sparsity": {name: share}}. It reads back bit by bit.

A ressa.json tells the same under "allocation", and can be read in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ressa.errors import RessaError, unknown
from ressa.files.paths import path_of
from ressa.files.text import write_atomic

UNITS = ("block", "linear")


@dataclass(frozen=True)
class Saved:
    """The share of zeros of each block, or of each linear, by its name in the model."""

    unit: str
    sparsity: dict[str, float]
    path: str = ""


def write_allocation(path: str | Path, allocation: Mapping[str, Any]) -> None:
    """Writes unit and sparsity of `allocation`, as a manifest of `prune` has them, whole or not at all."""
    entry = {key: allocation[key] for key in ("unit", "sparsity")}
    write_atomic(Path(path), json.dumps(entry, indent=2) + "\n")  # floats by repr: they read back the same


def read_allocation(path: str | Path) -> Saved:
    """The allocation in a file of its own or in a ressa.json.

    Raises:
        RessaError: no such file, no JSON, or not what `write_allocation` writes, with what is wrong.
    """
    try:
        content = json.loads(path_of(path, "the allocation").read_text(encoding="utf-8"))
    except OSError as error:
        raise RessaError(f"{path}: the allocation cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise RessaError(f"{path}: is not JSON ({str(error).splitlines()[0]})") from None
    if isinstance(content, dict) and isinstance(content.get("allocation"), dict):
        content = content["allocation"]
        if "sparsity" not in content:
            raise RessaError(f"{path}: that model was pruned uniformly, which needs no file: say sparsity instead")
    if not (isinstance(content, dict) and isinstance(content.get("sparsity"), dict) and content["sparsity"]):
        raise RessaError(f'{path}: is no allocation, which reads {{"unit": "block", "sparsity": {{name: share}}}}')
    if content.get("unit") not in UNITS:
        raise RessaError(f"{path}: {unknown('unit', str(content.get('unit')), UNITS)}")
    for name, share in content["sparsity"].items():
        if type(share) not in (int, float) or not 0 <= share < 1:
            raise RessaError(f"{path}: the sparsity of {name} is {share!r}, not a share of at least 0 and below 1")
    return Saved(content["unit"], content["sparsity"], str(path))
