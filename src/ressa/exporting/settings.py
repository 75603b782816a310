"""The settings of `export`."""

from __future__ import annotations

from dataclasses import dataclass

from ressa.errors import RessaError
from ressa.settings import SEEDS, check, setting

VALUES = ("same", "bf16", "fp16", "fp32", "int8", "int4")
INTEGERS = ("int8", "int4")
COMPRESSED = "compressed-tensors"


@dataclass(frozen=True)
class Export:
    """How a folder is stored."""

    format: str = setting(
        "packed",
        "packed (of each pruned linear the kept weights and a bitmask; ressa reads it), dense (plain safetensors) or "
        "compressed-tensors (all weights, zeros too, in 8 or 4 bits, as vLLM serves them).",
        among=("packed", "dense", COMPRESSED),
    )
    values: str = setting(
        "same",
        "What kept weights are stored in: same (bit for bit), bf16, fp16, fp32; or rounded, int8 with a scale for each "
        "row, int4 with one for each group.",
        among=VALUES,
    )
    group_size: int = setting(64, "Weights of a row that share a scale, for int4; packed counts kept ones alone.")
    rounding: str = setting(
        "compensated",
        "To int8 and int4: compensated (what a weight loses, kept ones make up for, by the inputs that --data brings; "
        "zeros stay zeros) or nearest (each alone; needs no data).",
        among=("compensated", "nearest"),
    )
    split: str = setting("train", "Which records show the inputs, for compensated.")
    samples: int = setting(128, "How many of them.")
    batch_size: int = setting(8, "Records that run together.")
    seed: int = setting(0, "Draws the records.", least=0, most=SEEDS)

    def __post_init__(self) -> None:
        check(self, "export")
        if self.format == "dense" and self.values != "same":
            raise RessaError(f"export: values {self.values} has no effect with format dense: leave it out")
        if self.format == COMPRESSED and self.values not in INTEGERS:
            raise RessaError(f"export: format {COMPRESSED} stores int8 or int4: add --values int8")

    @property
    def calibrates(self) -> bool:
        """Whether it looks at inputs."""
        return self.values in INTEGERS and self.rounding == "compensated"
