"""Statistics summed over all batches, each by the process that will change its linears.

Batches are dealt out to the processes of a team in turn. At each step every process makes the pieces of its own batch,
and the owner adds them in the order of ranks, which is the order of batches: the sums are those of one process, bit for
bit, and only the owner holds them. What is a few numbers an input waits for the last step and is sent at once. Alone, a
process owns everything and nothing is sent.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch

from ressa.calibration.visit import Call
from ressa.errors import RessaError
from ressa.model.structure import Block
from ressa.parallel import team
from ressa.statistics import Gram, InputNorm, Moments

Names = tuple[str, ...]  # of linears that read the same input
Found = list[tuple[Names, list[tuple[Any, ...]]]]  # with the arguments of each `add`
Made = list[tuple[Names, list[tuple[float, list[torch.Tensor]]]]]  # with what they came to: tokens, pieces


class Owners:
    """Which process changes which linears of a block: the largest Gram first, each to whom has the least to do.

    Args:
        known: those that have an owner at once.
        whole: all to the first process, for what looks at them together.
    """

    def __init__(
        self, block: Block, needs: type[Any] | None, known: Iterable[str] = (), *, whole: bool = False
    ) -> None:
        self.block, self.needs, self.whole = block, needs, whole
        self._owner: dict[str, int] = {}
        self._load = [0.0] * team().size
        self.deal((name,) for name in known)

    @property
    def known(self) -> set[str]:
        """The linears that have an owner."""
        return set(self._owner)

    def __getitem__(self, name: str) -> int:
        return self._owner[name]

    def deal(self, groups: Iterable[Names]) -> None:
        """Gives out those that have no owner yet; a group goes to one."""
        sizes = {names: self._size(names) for names in groups if names[0] not in self._owner}
        for names in sorted(sizes, key=lambda names: (-sizes[names][0], -sizes[names][1], names)):
            inputs, outputs = sizes[names]
            owner = 0 if self.whole else self._load.index(min(self._load))
            self._owner |= dict.fromkeys(names, owner)
            gram = self.needs is not None and issubclass(self.needs, Gram)
            self._load[owner] += inputs * (inputs * (inputs + outputs) if gram else outputs)

    def mine(self, names: Iterable[str]) -> list[str]:
        """Those of these linears that this process changes; who reads nothing known has an owner too."""
        wanted = list(names)
        self.deal((name,) for name in wanted)
        return [name for name in wanted if self._owner[name] == team().rank]

    @torch.no_grad()
    def share(self) -> None:
        """Every process gets the weights of these linears as their owners left them."""
        if team().size == 1:
            return
        team().exchange(None)
        with team().sending():
            for name in (name for name in self.block.linears if name in self._owner):
                team().broadcast(self.block.linears[name].weight, self._owner[name])

    def _size(self, names: Names) -> tuple[int, int]:
        """(I, O) of a group."""
        weights = [self.block.linears[name].weight for name in names]
        return weights[0].shape[1], sum(len(weight) for weight in weights)


class Sums:
    """`statistics`, by name of linear, of those that this process owns."""

    def __init__(self, needs: type[Any], owners: Owners) -> None:
        self.needs, self.owners = needs, owners
        self.statistics: dict[str, Any] = {}
        self._group: dict[str, Names] = {}
        self._small = team().size > 1 and issubclass(needs, (InputNorm, Moments))
        self._waiting: list[Made] = []  # of each step

    @torch.no_grad()
    def add(self, found: Found) -> None:
        """What this process's batch of a step adds; all processes come here at every step.

        Raises:
            RessaError: linears read the same tensor in one batch and different ones in another.
        """
        order = list(self.owners.block.linears)
        found = [(tuple(sorted(names, key=order.index)), given) for names, given in found]
        if self._small:
            self._waiting.append([(names, [self._made(*arguments) for arguments in given]) for names, given in found])
            return
        said = team().exchange([(names, len(given)) for names, given in found])
        groups = dict.fromkeys(names for names, _ in chain(*said))
        self._check(groups)
        self.owners.deal(groups)
        if team().size == 1:
            for names, given in found:
                for arguments in given:
                    self._sum(names).add(*arguments)
            return
        with team().sending():
            for names in groups:
                mine = [arguments for other, given in found if other == names for arguments in given]
                self._reduce(names, mine, [sum(n for other, n in share if other == names) for share in said])

    @torch.no_grad()
    def whole(self) -> dict[str, Any]:
        """The statistics, after the last step.

        Raises:
            RessaError: as `add`.
        """
        if not self._small:
            return self.statistics
        found = list(chain(*team().in_order(self._waiting)))
        groups = dict.fromkeys(names for names, _ in found)
        self._check(groups)
        self.owners.deal(groups)
        for names, made in found:
            if self.owners[names[0]] == team().rank:
                self._take(names, made)
        return self.statistics

    def _take(self, names: Names, made: list[tuple[float, list[torch.Tensor]]]) -> None:
        device = self.owners.block.linears[names[0]].weight.device
        for tokens, pieces in made:
            for number, piece in enumerate(pieces):
                self._sum(names).take(number, piece.to(device), tokens)

    def _made(self, *arguments: Any) -> tuple[float, list[torch.Tensor]]:
        tokens, parts = self.needs.parts(*arguments)
        return tokens, [make().cpu() for make in parts]

    def _check(self, groups: Iterable[Names]) -> None:
        for names in groups:
            if any(self._group.setdefault(name, names) != names for name in names):
                raise RessaError(f"{', '.join(names)} read the same input in one batch only; leave their part out")

    def _sum(self, names: Names) -> Any:
        if names[0] not in self.statistics:
            weight_OI = self.owners.block.linears[names[0]].weight
            made = self.needs(weight_OI.shape[1], device=weight_OI.device)
            self.statistics |= dict.fromkeys(names, made)
        return self.statistics[names[0]]

    def _reduce(self, names: Names, mine: list[tuple[Any, ...]], counts: list[int]) -> None:
        """Piece after piece goes to the owner; `counts[r]` is how often rank r adds."""
        owner, rank = self.owners[names[0]], team().rank
        if rank != owner and not mine:
            return
        weight_OI = self.owners.block.linears[names[0]].weight
        parts = [self.needs.parts(*arguments) for arguments in mine]
        tokens = _to_owner([told for told, _ in parts], owner, counts, weight_OI.device)
        for number, shape in enumerate(shapes(self.needs, weight_OI.shape[1])):
            own = [made[number]() for _, made in parts]  # before any other's is waited for
            if rank != owner:
                for piece in own:
                    team().send(piece, owner)
                continue
            there = torch.empty(shape, device=weight_OI.device)
            for sender, told in enumerate(tokens):
                for i, count in enumerate(told):
                    piece = own[i] if sender == rank else team().receive(there, sender)
                    self._sum(names).take(number, piece, count)


def _to_owner(mine: list[float], owner: int, counts: list[int], device: torch.device) -> list[list[float]]:
    """The owner gets what each rank says."""
    if team().rank != owner:
        team().send(torch.tensor(mine, dtype=torch.float64, device=device), owner)
        return []
    empty = [torch.empty(count, dtype=torch.float64, device=device) for count in counts]
    return [
        mine if sender == owner else team().receive(there, sender).tolist() if len(there) else []
        for sender, there in enumerate(empty)
    ]


def shapes(needs: Any, inputs: int) -> list[torch.Size]:
    """Of the pieces that a statistic of so many inputs is made of."""
    return [make().shape for make in needs.parts(torch.empty(1, inputs, device="meta"))[1]]


def steps(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """This process's calls, step by step: of one batch each, and none where only others have one. Alone, one by one."""
    if team().size == 1:
        yield from ([call] for call in calls)
        return
    for batch in sorted(set().union(*team().exchange({call.batch for call in calls}))):
        yield [call for call in calls if call.batch == batch]
