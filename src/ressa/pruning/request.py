"""What a user asks for: how much sparsity, of which parts, shared out how. Checked before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ressa import allocation as allocations
from ressa.errors import RessaError
from ressa.model.structure import PARTS, PartName
from ressa.patterns import Group, NofM, Pattern, parse

Sparsity = str | float
DEFAULT = "2:4"
BUDGETS = ("part", "model")


@dataclass(frozen=True)
class Request:
    """The settings of `prune` that say where zeros may go, each of them checked by itself (`ressa.limits`).

    Raises RessaError, one line, if they contradict.
    """

    method: str = "admm"
    sparsity: Sparsity = DEFAULT
    vision: Sparsity | None = None
    connector: Sparsity | None = None
    language: Sparsity | None = None
    total: Sparsity | None = None
    allocation: str = "uniform"
    budget: str | None = None
    spread: float | None = None
    keep_dense: int = 0
    group: str | None = None

    def __post_init__(self) -> None:
        for written in (self.sparsity, *(self.sparsity_of(part) for part in PARTS)):
            parse(written)
        if self.from_file:
            self._check_file()
            return
        self._check_group()
        self._check_settings()
        self._check_total()
        self._check_shares()

    @classmethod
    def of(cls, settings: Any) -> Request:
        """From the attributes (or the entries of a dict) that have the same names."""
        told = settings if isinstance(settings, dict) else vars(settings)
        return cls(**{f.name: told[f.name] for f in fields(cls)})

    @property
    def from_file(self) -> bool:
        return self.allocation.endswith(".json")

    @property
    def name(self) -> str:
        """The allocation's name; what competes within a part or the model is shared out by magnitude."""
        return "magnitude" if self.group in BUDGETS else self.allocation

    @property
    def pool(self) -> str:
        """Whose zeros are shared out together: each part's own, or those of the model."""
        return self.group if self.group in BUDGETS else self.budget or "part"

    @property
    def plain(self) -> bool:
        """Every matrix gets the pattern of its part, and nothing has to add up."""
        return self.name == "uniform" and self.total is None

    @property
    def needs_data(self) -> bool:
        return not self.from_file and allocations.get(self.name).measure is not None

    def sparsity_of(self, part: PartName) -> Sparsity:
        told = getattr(self, part)
        return told if told is not None else 0 if part == "connector" else self.sparsity

    def told(self) -> dict[str, Pattern]:
        """The parts whose sparsity was told apart; a connector counts only if it is to be pruned."""
        said = {part: parse(getattr(self, part)) for part in PARTS if getattr(self, part) is not None}
        return {part: pattern for part, pattern in said.items() if pattern.sparsity or part != "connector"}

    def group_in(self, part: PartName, *, exact: bool) -> Group:
        """What competes in a matrix. In vision towers rows differ in what they can spare; in decoders each row is
        better off with its share. Where counts must add up (`exact`), rows differ by one weight at most."""
        if self.group in ("matrix", *BUDGETS) or (self.group is None and part == "vision"):
            return "matrix"
        return "even" if exact else "row"

    def _check_group(self) -> None:
        if self.group not in BUDGETS:
            shares = [part for part in PARTS if not isinstance(parse(self.sparsity_of(part)), NofM)]
            if self.group and self.total is None and not any(parse(self.sparsity_of(part)).sparsity for part in shares):
                raise RessaError(f"group '{self.group}' says what competes in a share (50%), not in N:M: leave it out")
            return
        if self.method.partition("+")[0] != "magnitude":
            raise RessaError(
                f"group '{self.group}' compares bare weights of many matrices, which is for method magnitude: "
                f"with '{self.method}' say allocation magnitude"
            )
        for name, unsaid in (("allocation", "uniform"), ("budget", None)):
            if getattr(self, name) != unsaid:
                raise RessaError(f"group '{self.group}' already says where zeros go: leave {name} out")

    def _check_settings(self) -> None:
        entry = allocations.get(self.name)
        if self.spread is not None and entry.spread is None:
            raise RessaError(f"allocation '{self.name}' has no setting 'spread': leave it out")
        if self.budget is not None and self.name == "uniform":
            raise RessaError("allocation 'uniform' has no budget to share out: choose another, or leave budget out")
        if self.keep_dense and not self.plain:
            raise RessaError(
                "keep_dense leaves whole blocks out of a uniform sparsity; total and other allocations already say "
                "what each block gets: leave one of them out"
            )

    def _check_total(self) -> None:
        if self.total is None:
            return
        told = {"total": parse(self.total)} | self.told()
        for name, pattern in told.items():
            if isinstance(pattern, NofM):
                raise RessaError(f"with total every sparsity is a share (50%), not N:M: {name} is {pattern}")
        if not told["total"].sparsity:
            raise RessaError("total 0 leaves nothing to prune: say a share, as in 50%")
        if self.sparsity != DEFAULT:
            raise RessaError("total already says how many zeros there are: leave sparsity out")
        if self.vision is not None and self.language is not None:
            raise RessaError("total needs a part that makes up for the others: leave vision or language out")
        if self.pool == "model" and len(told) > 1:
            raise RessaError("a budget of the whole model has no parts of their own: leave vision and the others out")

    def _check_shares(self) -> None:
        if self.plain or self.total is not None:
            return
        pruned = {part: parse(self.sparsity_of(part)) for part in PARTS}
        pruned = {part: pattern for part, pattern in pruned.items() if pattern.sparsity}
        for part, pattern in pruned.items():
            if isinstance(pattern, NofM):
                raise RessaError(
                    f"allocation '{self.name}' gives every block another sparsity, but {pattern} of {part} is the same "
                    "everywhere: say a share (sparsity 50%), or keep the most sensitive blocks dense (keep_dense)"
                )
        if self.pool == "model" and len({pattern.sparsity for pattern in pruned.values()}) > 1:
            raise RessaError("a budget of the whole model takes one sparsity for all parts: say it as sparsity alone")

    def _check_file(self) -> None:
        """The file says it all."""
        for name in ("vision", "connector", "language", "total", "budget", "spread"):
            if getattr(self, name) is not None:
                raise RessaError(f"{self.allocation} already says what each block gets: leave {name} out")
        if self.sparsity != DEFAULT or self.keep_dense or self.group in BUDGETS:
            name = (
                "keep_dense" if self.keep_dense else "sparsity" if self.sparsity != DEFAULT else f"group {self.group}"
            )
            raise RessaError(f"{self.allocation} already says what each block gets: leave {name} out")
