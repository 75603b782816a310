"""What `repair` was told, with the defaults of the objective filled in. Checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ressa.errors import RessaError, unknown
from ressa.limits import check
from ressa.model.structure import PARTS
from ressa.settings import Repair

# What stands for None. The second is what RESSA's released code does: facts in docs/repair.md
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ressa": {
        "lr": 1e-3,
        "warmup": 0.03,
        "clip": 1.0,
        "rank": 32,
        "alpha": 64.0,
        "kl_weight": 0.5,
        "temperature": 2.0,
        "hidden_weight": 100.0,
        "train_norms": True,
        "train_biases": True,
        "train_connector": True,
    },
    "paper": {
        "lr": 1e-4,
        "warmup": 0.0,
        "clip": 0.0,
        "rank": 8,
        "vision_rank": 4,
        "connector_rank": 2,
        "alpha": 16.0,
        "kl_weight": 0.1,
        "temperature": 1.0,
        "hidden_weight": 0.0,
        "train_norms": False,
        "train_biases": False,
        "train_connector": False,
    },
}
UPDATES = (  # settings of low-rank updates
    *("rank", "vision_rank", "connector_rank", "language_rank"),
    *("alpha", "vision_alpha", "connector_alpha", "language_alpha", "dropout"),
)
MASKED_LR = 2e-4  # of masked-ft: whole weights move, not the small factors of an update


@dataclass(frozen=True)
class Settings:
    """The arguments of `repair` that decide what comes out; the same names. `complete` fills in what is None."""

    steps: int | None
    samples: int | None
    batch_size: int
    accumulate: int
    lr: float | None
    warmup: float | None
    clip: float | None
    adapter: str
    parts: str
    rank: int | None
    vision_rank: int | None
    connector_rank: int | None
    language_rank: int | None
    alpha: float | None
    vision_alpha: float | None
    connector_alpha: float | None
    language_alpha: float | None
    dropout: float
    objective: str
    kl_weight: float | None
    temperature: float | None
    hidden_weight: float | None
    connector_weight: float | None
    train_norms: bool | None
    train_biases: bool | None
    train_connector: bool | None
    reconstruct: int
    reconstruct_lr: float
    teacher_device: str | None
    teacher_cache: str | None
    top_k: int
    gradient_checkpointing: bool
    seed: int

    def __post_init__(self) -> None:
        check(Repair, vars(self), "repair")
        for part in self.trained_parts:
            if part not in PARTS:
                raise unknown("part", part, PARTS)
        if self.steps == 0 and not self.reconstruct:
            raise RessaError("repair: steps is 0, which leaves nothing to do without reconstruct")
        if self.teacher_cache and self.objective == "paper":
            raise RessaError("repair: the paper's KL counts padding too, which no cache of the teacher can hold")
        if self.teacher_device is not None:
            try:
                torch.device(self.teacher_device)
            except RuntimeError:
                raise RessaError(
                    f"repair: teacher_device '{self.teacher_device}' is no device, as cpu and cuda:1 are"
                ) from None

    @classmethod
    def complete_from(cls, given: Mapping[str, Any]) -> Settings:
        """From the entries of the same names, with the objective's defaults.

        Raises:
            RessaError: what cannot be, and what would have no effect.
        """
        told = cls(**{f.name: given[f.name] for f in fields(cls)})
        if told.adapter == "masked-ft" and (idle := [name for name in UPDATES if getattr(told, name)]):
            raise RessaError(f"repair: masked-ft trains the weights themselves, without updates: leave {idle[0]} out")
        whole = told.complete
        for name in ("teacher_device", "teacher_cache"):
            if getattr(whole, name) and not whole.needs_teacher:
                raise RessaError(f"repair: no loss looks at the dense model: leave {name} out")
        if whole.teacher_cache and whole.steps == 0:
            raise RessaError("repair: reconstruction reads no cache of the teacher: leave teacher_cache out, or train")
        return whole

    @property
    def complete(self) -> Settings:
        """The same with the objective's defaults for what is None; a rank for all parts beats the objective's own."""
        defaults = dict(OBJECTIVES[self.objective])
        if self.rank is not None:
            defaults = {name: value for name, value in defaults.items() if not name.endswith("_rank")}
        if self.adapter == "masked-ft":
            defaults["lr"] = min(defaults["lr"], MASKED_LR)
        whole = replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})
        return whole if self.connector_weight is not None else replace(whole, connector_weight=whole.hidden_weight)

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Whose pruned linears are trained."""
        return tuple(part.strip() for part in self.parts.split(",") if part.strip())

    @property
    def paper(self) -> bool:
        return self.objective == "paper"

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss looks at the dense model."""
        return bool(self.kl_weight or self.hidden_weight or self.connector_weight)

    def of(self, part: str) -> tuple[int, float]:
        """(rank, alpha) of a part's updates."""
        rank, alpha = getattr(self, f"{part}_rank"), getattr(self, f"{part}_alpha")
        assert self.rank is not None
        assert self.alpha is not None
        return rank or self.rank, alpha or self.alpha
