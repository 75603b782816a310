"""Statistics summed over all batches, each by the process that will change its linears.

Batches are dealt out to the processes of a team in turn. At each step every process makes the pieces of its own batch,
and the owner adds them in the order of ranks, which is the order of batches: the sums are those of one process, bit for
bit, and only the owner holds them. What is a few numbers an input waits for the last step and is sent at once. Alone, a
process owns everything and nothing is sent.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import torch

from ressa.calibration.visit import Call
from ressa.errors import RessaError
from ressa.model.structure import Block
from ressa.parallel import team
from ressa.statistics import Gram, InputNorm, Moments

MESSAGE = 1 << 23  # numbers that are sent at once: where Grams are small, waiting for each would cost more than it
Names = tuple[str, ...]  # of linears that read the same input
Item = tuple[Names, int]  # the number of a piece
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
        self._cut: dict[Names, list[torch.Size]] = {}  # the shapes of pieces, told once: it takes products of nothing
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
        mine = {names: [arguments for other, adds in found if other == names for arguments in adds] for names in groups}
        counts = {names: [sum(n for other, n in share if other == names) for share in said] for names in groups}
        with team().sending():
            for owner, items in self._messages(groups):
                self._reduce(owner, items, mine, counts)

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

    def _messages(self, groups: Iterable[Names]) -> Iterator[tuple[int, list[Item]]]:
        """What is sent to an owner at once: pieces of at most MESSAGE numbers together, or a larger one."""
        for owner, theirs in groupby(sorted(groups, key=self._owner_of), key=self._owner_of):
            items: list[Item] = []
            size = 0
            for names in theirs:
                for number, shape in enumerate(self._shapes(names)):
                    if items and size + shape.numel() > MESSAGE:
                        yield owner, items
                        items, size = [], 0
                    items.append((names, number))
                    size += shape.numel()
            yield owner, items

    def _reduce(
        self, owner: int, items: list[Item], given: Mapping[Names, list[Any]], counts: Mapping[Names, list[int]]
    ) -> None:
        """A message of each rank goes to the owner; `counts[names][r]` is how often rank r adds to these."""
        mine = list(self._pieces(items, given))  # before any other's are waited for
        device = self.owners.block.linears[items[0][0][0]].weight.device
        if team().rank != owner:
            if mine:
                team().send(_joined(mine, device), owner)
            return
        for sender in range(team().size):
            wanted = [(names, number) for names, number in items for _ in range(counts[names][sender])]
            sizes = [self._shapes(names)[number] for names, number in wanted]
            made = mine if sender == owner else _received(sizes, sender, device)
            for (names, number), (tokens, piece) in zip(wanted, made, strict=True):
                self._sum(names).take(number, piece, tokens)

    def _pieces(self, items: Iterable[Item], given: Mapping[Names, list[Any]]) -> Iterator[tuple[float, torch.Tensor]]:
        """With the tokens of its batch, each piece of each `add` of this process."""
        for names, wanted in groupby(items, key=itemgetter(0)):
            parts = [self.needs.parts(*arguments) for arguments in given[names]]
            for _, number in wanted:
                yield from ((tokens, made[number]()) for tokens, made in parts)

    def _owner_of(self, names: Names) -> int:
        return self.owners[names[0]]

    def _shapes(self, names: Names) -> list[torch.Size]:
        if names not in self._cut:
            self._cut[names] = shapes(self.needs, self.owners.block.linears[names[0]].weight.shape[1])
        return self._cut[names]


def _joined(made: Sequence[tuple[float, torch.Tensor]], device: torch.device) -> torch.Tensor:
    """Pieces as one row of float32; before them the tokens, whose float64 takes two places each."""
    tokens = torch.tensor([tokens for tokens, _ in made], dtype=torch.float64, device=device)
    return torch.cat([tokens.view(torch.float32), *(piece.reshape(-1) for _, piece in made)])


def _received(sizes: Sequence[torch.Size], sender: int, device: torch.device) -> list[tuple[float, torch.Tensor]]:
    """What `_joined` was made of, from its sender; nothing is sent where there is nothing."""
    if not sizes:
        return []
    lengths = [2 * len(sizes), *(size.numel() for size in sizes)]
    tokens, *rows = team().receive(torch.empty(sum(lengths), device=device), sender).split(lengths)
    pieces = [row.view(size) for row, size in zip(rows, sizes, strict=True)]
    return list(zip(tokens.view(torch.float64).tolist(), pieces, strict=True))


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
