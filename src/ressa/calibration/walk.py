"""Calibration batches meet at every block: each runs the model's own forward, and all wait for one another there.

A forward runs as a greenlet that pauses on entering a block. When every batch stands somewhere, the earliest block that
any of them stands at is visited: its inputs are gathered, it is pruned, and then the batches there run it and go on.
Nothing is traced and nothing is known of the architecture: arguments, masks and position biases are the model's own.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import Cache, PreTrainedModel

from ressa.calibration.tensors import give_back, kind_of, moved, swap, version
from ressa.errors import RessaError, unknown
from ressa.machine import products_in
from ressa.model.structure import Block

PROPAGATE = ("sequential", "dense")
Batch = Mapping[str, Any]
Progress = Callable[[int, int, str], None]


class Enough(BaseException):
    """Raised by a hook within a block to end `Visit.run`: the rest of the block is not needed."""


@dataclass(frozen=True)
class Call:
    """One entry of one batch into a block, with the arguments the model gave."""

    batch: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Visit:
    """All batches stand at `block`; `calls` are all their entries into it, in the order of the batches.

    `onward`: what the first run of a call puts out is also what its batch goes on with; the block must run whole.
    """

    block: Block
    calls: tuple[Call, ...]
    onward: bool
    _execute: Callable[[Call], list[Any]] = field(repr=False)

    def run(self, call: Call) -> list[Tensor]:
        """Runs the block as it now is, with its hooks, and drops the output. Returns the tensors it was given.

        Raises:
            RessaError: the block remembers (a key-value cache) or overwrites its arguments: it cannot be run twice.
        """
        with torch.no_grad():
            return self._execute(call)


@dataclass
class _Traveller:
    """A batch on its way. It stands `at` the block of that index with `call`; None when it has arrived."""

    batch: int
    green: Any
    pauses: Callable[[int], bool]
    at: int | None = None
    call: Call | None = None
    output: Any = None
    gathered: Counter[int] = field(default_factory=Counter)  # entries that took part in a block's visit
    passed: Counter[int] = field(default_factory=Counter)  # entries that then ran through it


def walk(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    *,
    propagate: str = "sequential",
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
    outputs: list[Any] | None = None,
) -> Iterator[Visit]:
    """Visits each block that any batch enters, once, in the order of `blocks` (which is to be the forward's).

    What the caller does to a block during its visit is what the batches then run ("sequential"), or they go on with
    what the block made of them before ("dense"; the caller is to run every call before it changes the block). A block
    that a forward enters several times is visited once with all its entries; for that its batch runs once more for
    each such block, and one batch of each kind runs once in advance, to know. A batch that never enters a block takes
    no part in its visit.

    Args:
        device: blocks move there for their visit, one at a time, and back; None leaves them where they are.
        autocast: what forwards compute products in, where that is less than the weights have; None for theirs.
        progress: told (blocks done, blocks in all, the next one's name).
        outputs: if given, the forwards run to their end and what they return is appended, in the order of `batches`.

    Raises:
        RessaError: an unknown `propagate`; a block that is entered in a way that the run in advance did not show; one
            that is to go on as dense and was changed before every call had run.
    """
    if propagate not in PROPAGATE:
        raise unknown("propagate", propagate, PROPAGATE)
    journey = _Journey(model, blocks, batches, None if device is None else torch.device(device), autocast)
    was_training = model.training
    model.eval()
    try:
        journey.patch()
        yield from journey.visits(propagate == "dense", progress, outputs)
    finally:
        journey.end()
        if was_training:
            model.train()


class _Journey:
    """The state of one walk: which forwards are replaced, which batches travel, which blocks are done."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Sequence[Block],
        batches: Sequence[Batch],
        device: torch.device | None,
        autocast: torch.dtype | None,
    ) -> None:
        self.model, self.blocks, self.batches, self.device = model, blocks, batches, device
        self.home = model.device
        self.products = partial(products_in, autocast, self.home, device or self.home)
        self.originals: list[tuple[nn.Module, Callable[..., Any], bool]] = []
        self.travellers: dict[Any, _Traveller] = {}
        self.done: set[int] = set()
        self.resident: int | None = None
        self.held: dict[int, list[Tensor]] = {}  # pruned weights, while dense ones stand in for them
        self.kept: dict[int, Any] = {}  # what the dense block of this visit made of batches, by batch

    def patch(self) -> None:
        for index, block in enumerate(self.blocks):
            module = block.module
            self.originals.append((module, module.forward, "forward" in vars(module)))
            module.forward = partial(self.enter, index)

    def end(self) -> None:
        """Unwinds every batch that is still on its way, then gives every block its own forward back."""
        for traveller in list(self.travellers.values()):
            self._stop(traveller)
        for module, forward, own in self.originals:
            if own:
                module.forward = forward
            else:
                del module.forward
        for index in list(self.held):
            swap(self.blocks[index].module, self.held.pop(index))

    def visits(self, dense: bool, progress: Progress | None, outputs: list[Any] | None) -> Iterator[Visit]:
        plans = self._survey()
        crowd = [self._start(number, self._undone) for number in range(len(self.batches))]
        while standing := [traveller.at for traveller in crowd if traveller.at is not None]:
            index = min(standing)
            block = self.blocks[index]
            if progress:
                progress(len(self.done), len(self.blocks), block.name)
            with self._on_device(index):
                calls = tuple(call for traveller in crowd for call in self._calls(traveller, index, plans))
                onward, state = dense and all(plans[call.batch][index] <= 1 for call in calls), _state(block)
                before = [weight.detach().clone() for weight in block.module.parameters()] if dense > onward else []
                yield Visit(block, calls, onward, partial(self._execute, block, state if onward else None))
                self.done.add(index)
                if before:
                    self.held[index] = swap(block.module, before)
                if onward and len(self.kept) < len(calls) and state != _state(block):
                    raise RessaError(f"{block.name} was changed before every batch had run it: none can go on as dense")
                for traveller in crowd:
                    if traveller.at == index:
                        self._go_on(traveller, plans, to_the_end=outputs is not None)
                # a batch that is to come again must find the block dense again
                give_back()
                if index in self.held and all(traveller.gathered[index] <= 1 for traveller in crowd):
                    swap(block.module, self.held.pop(index))
        if progress:
            progress(len(self.blocks), len(self.blocks), "")
        if outputs is not None:
            outputs.extend(traveller.output for traveller in crowd)

    def enter(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the forward of block `index`."""
        traveller = self.travellers.get(getcurrent())
        if traveller is not None:
            if traveller.pauses(index):
                traveller.green.parent.switch((index, Call(traveller.batch, args, kwargs)))
            if traveller.pauses == self._undone:
                self._count(traveller, index)
                if traveller.batch in self.kept:
                    return self.kept.pop(traveller.batch)
        return self._forward(index, args, kwargs)

    def _undone(self, index: int) -> bool:
        return index not in self.done

    def _count(self, traveller: _Traveller, index: int) -> None:
        traveller.passed[index] += 1
        if traveller.passed[index] > traveller.gathered[index]:
            who = (
                f"{self.blocks[index].name} was pruned before batch {traveller.batch} had entered it for the last time"
            )
            raise RessaError(f"{who}: its forward goes another way than that of a batch of the same shapes")

    def _survey(self) -> list[Counter[int]]:
        """How often each batch will enter each block. Batches of one kind go the same way: only the first is run.

        Pictures (floating point) decide the way, so their shapes make the kind; more tokens only make it slower.
        """
        known: dict[tuple[Any, ...], Counter[int]] = {}
        plans = []
        with _idle_linears(self.model):
            for number, batch in enumerate(self.batches):
                kind = tuple(sorted((key, kind_of(value)) for key, value in batch.items()))
                if kind not in known:
                    known[kind] = Counter(call_index for call_index, _ in self._entries(number, lambda _: True))
                plans.append(known[kind])
        return plans

    def _calls(self, traveller: _Traveller, index: int, plans: list[Counter[int]]) -> list[Call]:
        """All entries of a batch into block `index`. It stands at the first; for more it must run ahead and back."""
        planned = plans[traveller.batch][index]
        if traveller.at == index and planned <= 1:
            calls = [traveller.call] if traveller.call else []
        elif planned:
            calls = [call for _, call in self._entries(traveller.batch, lambda other: other == index, planned)]
        else:
            calls = []
        traveller.gathered[index] = len(calls)
        return calls

    def _entries(self, number: int, pauses: Callable[[int], bool], limit: int = 0) -> Iterator[tuple[int, Call]]:
        """Where a forward of batch `number`, on its own, pauses; given up after `limit` of them if that is not 0."""
        scout = self._start(number, pauses)
        count = 0
        while scout.at is not None and scout.call is not None:
            yield scout.at, scout.call
            count += 1
            if count == limit:
                break
            self._switch(scout)
        self._stop(scout)

    def _start(self, number: int, pauses: Callable[[int], bool]) -> _Traveller:
        batch = moved(dict(self.batches[number]), self.home)
        # with a cache, running a block twice would double its keys
        green = greenlet(partial(self.model, **{**batch, "use_cache": False}))
        green.gr_context = contextvars.copy_context()
        traveller = self.travellers[green] = _Traveller(number, green, pauses)
        self._switch(traveller)
        return traveller

    def _switch(self, traveller: _Traveller) -> None:
        """Lets a batch run until it pauses or ends. No gradients: the mode is the thread's, not the greenlet's."""
        green = traveller.green
        green.parent = getcurrent()
        with torch.no_grad(), self.products():
            result = green.switch()
        if green.dead:
            traveller.at, traveller.call, traveller.output = None, None, result
            self.travellers.pop(green, None)
        else:
            traveller.at, traveller.call = result

    def _go_on(self, traveller: _Traveller, plans: list[Counter[int]], *, to_the_end: bool) -> None:
        if to_the_end or plans[traveller.batch].keys() - self.done:
            self._switch(traveller)
        else:
            self._stop(traveller)  # the head over all words is not worth running for nothing

    def _stop(self, traveller: _Traveller) -> None:
        traveller.at = traveller.call = None
        self.travellers.pop(traveller.green, None)
        if not traveller.green.dead:
            traveller.green.parent = getcurrent()
            traveller.green.throw(GreenletExit)

    def _execute(self, block: Block, state: list[int] | None, call: Call) -> list[Any]:
        args, kwargs = (call.args, call.kwargs) if self.device is None else moved((call.args, call.kwargs), self.device)
        leaves = tree_leaves((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Cache))
        if any(isinstance(leaf, Cache) for leaf in leaves):
            raise RessaError(f"{block.name} is given a key-value cache although use_cache is off; leave its part out")
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        before = [version(tensor) for tensor in tensors]
        with suppress(Enough), self.products():
            output = block.module(*args, **kwargs)
            if state == _state(block):
                self.kept.setdefault(call.batch, self._returned(output, call.args, call.kwargs))
        if before != [version(tensor) for tensor in tensors]:
            raise RessaError(f"{block.name} changes its own arguments and cannot be run twice; leave its part out")
        return tensors

    def _forward(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = self.originals[index][1]
        if self.device is None:
            return forward(*args, **kwargs)
        with self._on_device(index):
            there = moved((args, kwargs), self.device)
            output = forward(*there[0], **there[1])
            return self._returned(output, args, kwargs)

    def _returned(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`output` on the device that the arguments came from."""
        if self.device is None:
            return output
        home = next((leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), self.device)
        return moved(output, home)

    @contextmanager
    def _on_device(self, index: int) -> Iterator[None]:
        """Block `index` on the device, unless it is there already."""
        module = self.blocks[index].module
        if self.device is None or self.resident == index:
            yield
            return
        home, outer = next(module.parameters()).device, self.resident
        module.to(self.device)
        self.resident = index
        try:
            yield
        finally:
            module.to(home)
            self.resident = outer


@contextmanager
def _idle_linears(model: PreTrainedModel) -> Iterator[None]:
    """Linears put out zeros: a forward goes the same way, which shapes decide, at a small part of the cost."""
    linears: list[Any] = [
        module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)
    ]
    for linear in linears:
        linear.forward = partial(_zeros, linear.out_features)
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _zeros(width: int, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], width)


def _state(block: Block) -> list[int]:
    """Changes when weights of the block do."""
    return [version(parameter) for parameter in block.module.parameters()]
