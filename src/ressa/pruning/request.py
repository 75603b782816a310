"""What a user asks for: how much sparsity, of which parts, shared out how. Checked before any weight is loaded."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from ressa import allocation as allocations
from ressa import methods
from ressa.calibration.tokens import check_counts
from ressa.errors import RessaError
from ressa.files.text import to_bytes
from ressa.model.structure import PARTS, PartName
from ressa.patterns import Group, NofM, Pattern, parse
from ressa.pruning.settings import Prune
from ressa.settings import naming

DEFAULT = "2:4"
BUDGETS = ("part", "model")
GRADIENT = "gradient"  # in `token_weights`


@dataclass(frozen=True)
class Request:
    """What is asked for: which method, how many zeros of each part, and how they are shared out."""

    asked: Prune

    def check(self) -> None:
        """Raises RessaError, one line, for what cannot be or contradicts itself."""
        asked = self.asked
        methods.get(asked.method, damp=asked.damp, shrinkage=asked.shrinkage)
        methods.check_moving(asked.method, asked.asymmetric)
        check_counts(self.token_weights)
        if asked.shard_size is not None:
            to_bytes(asked.shard_size, "shard_size")
        for name in ("sparsity", "total", *PARTS):
            if (share := getattr(asked, name)) is not None:
                with naming(name) if name != "sparsity" else nullcontext():
                    parse(share)
        if self.from_file:
            self._check_file()
            return
        self._check_group()
        self._check_settings()
        self._check_total()
        self._check_shares()

    @property
    def gradient(self) -> bool:
        """Whether tokens are weighed by gradient, beside what `token_weights` says of their kinds."""
        return GRADIENT in self._weights

    @property
    def token_weights(self) -> dict[str, float] | None:
        """{kind of token: how much it counts}. Raises RessaError for text that is not of the form image=0.1,text=1."""
        pairs = [pair.partition("=") for pair in self._weights if pair != GRADIENT]
        try:
            return {key.strip(): float(value) for key, _, value in pairs} or None
        except ValueError:
            raise RessaError(
                f"token_weights: '{self.asked.token_weights}' is not of the form image=0.1,text=1, or {GRADIENT}"
            ) from None

    @property
    def _weights(self) -> list[str]:
        return [] if self.asked.token_weights is None else [w.strip() for w in self.asked.token_weights.split(",")]

    @property
    def from_file(self) -> bool:
        return self.asked.allocation.endswith(".json")

    @property
    def name(self) -> str:
        """The allocation's name; what competes within a part or the model is shared out by magnitude."""
        return "magnitude" if self.asked.group in BUDGETS else self.asked.allocation

    @property
    def pool(self) -> str:
        """Whose zeros are shared out together: each part's own, or those of the model."""
        return self.asked.group if self.asked.group in BUDGETS else self.asked.budget or "part"

    @property
    def plain(self) -> bool:
        """Every matrix gets the pattern of its part, and nothing has to add up."""
        return self.name == "uniform" and self.asked.total is None

    @property
    def needs_data(self) -> bool:
        return not self.from_file and allocations.get(self.name).measure is not None

    def sparsity_of(self, part: PartName) -> str:
        own = getattr(self.asked, part)
        return own if own is not None else "0" if part == "connector" else self.asked.sparsity

    def own_patterns(self) -> dict[str, Pattern]:
        """The parts whose sparsity is set on its own; a connector counts only if it is to be pruned."""
        own = {part: parse(getattr(self.asked, part)) for part in PARTS if getattr(self.asked, part) is not None}
        return {part: pattern for part, pattern in own.items() if pattern.sparsity or part != "connector"}

    def group_in(self, part: PartName, *, exact: bool) -> Group:
        """What competes in a matrix. In vision towers rows differ in what they can spare; in decoders each row is
        better off with its share. Where counts must add up (`exact`), rows differ by one weight at most."""
        if self.asked.group in ("matrix", *BUDGETS) or (self.asked.group is None and part == "vision"):
            return "matrix"
        return "even" if exact else "row"

    def _check_group(self) -> None:
        if self.asked.group not in BUDGETS:
            shares = [part for part in PARTS if not isinstance(parse(self.sparsity_of(part)), NofM)]
            if (
                self.asked.group
                and self.asked.total is None
                and not any(parse(self.sparsity_of(part)).sparsity for part in shares)
            ):
                raise RessaError(
                    f"group '{self.asked.group}' says what competes in a share (50%), not in N:M: leave it out"
                )
            return
        if not methods.get(self.asked.method).bare_weights:
            able = " or ".join(name for name, method in methods.METHODS.items() if method.bare_weights)
            raise RessaError(
                f"group '{self.asked.group}' compares bare weights of many matrices, which is for method {able}: "
                f"with '{self.asked.method}' say allocation magnitude"
            )
        for name, unsaid in (("allocation", "uniform"), ("budget", None)):
            if getattr(self.asked, name) != unsaid:
                raise RessaError(f"group '{self.asked.group}' already says where zeros go: leave {name} out")

    def _check_settings(self) -> None:
        entry = allocations.get(self.name)
        if self.asked.spread is not None and entry.spread is None:
            raise RessaError(f"allocation '{self.name}' has no setting 'spread': leave it out")
        if self.asked.budget is not None and self.name == "uniform":
            raise RessaError("allocation 'uniform' has no budget to share out: choose another, or leave budget out")
        if self.asked.keep_dense and not self.plain:
            raise RessaError(
                "keep_dense leaves whole blocks out of a uniform sparsity; total and other allocations already say "
                "what each block gets: leave one of them out"
            )

    def _check_total(self) -> None:
        if self.asked.total is None:
            return
        patterns = {"total": parse(self.asked.total)} | self.own_patterns()
        for name, pattern in patterns.items():
            if isinstance(pattern, NofM):
                raise RessaError(f"with total every sparsity is a share (50%), not N:M: {name} is {pattern}")
        if not patterns["total"].sparsity:
            raise RessaError("total 0 leaves nothing to prune: say a share, as in 50%")
        if self.asked.sparsity != DEFAULT:
            raise RessaError("total already says how many zeros there are: leave sparsity out")
        if self.asked.vision is not None and self.asked.language is not None:
            raise RessaError("total needs a part that makes up for the others: leave vision or language out")
        if self.pool == "model" and len(patterns) > 1:
            raise RessaError("a budget of the whole model has no parts of their own: leave vision and the others out")

    def _check_shares(self) -> None:
        if self.plain or self.asked.total is not None:
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
            if getattr(self.asked, name) is not None:
                raise RessaError(f"{self.asked.allocation} already says what each block gets: leave {name} out")
        asked = self.asked
        beside = {"keep_dense": asked.keep_dense, "sparsity": asked.sparsity != DEFAULT}
        beside |= {f"group {asked.group}": asked.group in BUDGETS}
        for name in (name for name, said in beside.items() if said):
            raise RessaError(f"{asked.allocation} already says what each block gets: leave {name} out")


def check(settings: Prune) -> None:
    """Raises RessaError, one line, for settings that cannot be or contradict each other."""
    Request(settings).check()
