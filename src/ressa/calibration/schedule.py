"""The schedule of a walk: which forwards are running, at which block each of them waits, which blocks are done."""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import Cache, PreTrainedModel

from ressa.calibration.places import Places
from ressa.calibration.tensors import give_back, kind_of, moved, version
from ressa.calibration.visit import Batch, Call, StopForward, Visit
from ressa.data.prompts import is_encoder_decoder
from ressa.errors import RessaError
from ressa.machine import products_in
from ressa.model.structure import Block
from ressa.parallel import team
from ressa.settings import Progress


@dataclass
class Forward:
    """A forward of one batch. It waits `at` the block of that index with `call`; None when it has ended."""

    batch: int
    green: Any
    pauses: Callable[[int], bool]
    at: int | None = None
    call: Call | None = None
    output: Any = None
    gathered: Counter[int] = field(default_factory=Counter)  # entries that took part in a block's visit
    passed: Counter[int] = field(default_factory=Counter)  # entries that then ran through it


class Schedule:
    """The state of one walk, whose arguments it has."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Sequence[Block],
        batches: Sequence[Batch],
        device: torch.device | None,
        autocast: torch.dtype | None,
        places: Places,
    ) -> None:
        self.model, self.blocks, self.batches, self.device = model, blocks, batches, device
        self.places = places
        self.home = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
        self.products = partial(products_in, autocast, self.home, device or self.home)
        self.originals: list[tuple[nn.Module, Callable[..., Any], bool]] = []
        self.running: dict[Any, Forward] = {}
        self.done: set[int] = set()
        self.resident: int | None = None
        self.held: set[int] = set()  # blocks that were changed and run as they were before
        self.kept: dict[int, Any] = {}  # what the dense block of this visit made of batches, by batch
        for index, block in enumerate(blocks):
            module = block.module
            self.originals.append((module, module.forward, "forward" in vars(module)))
            module.forward = partial(self.enter, index)

    def end(self) -> None:
        """Unwinds every forward that has not ended, then gives every block its own forward back."""
        for forward in list(self.running.values()):
            self._stop(forward)
        for module, original, own in self.originals:
            if own:
                module.forward = original
            else:
                del module.forward
        while self.held:
            self.places.go_changed(self.blocks[self.held.pop()])

    def visits(self, dense: bool, progress: Progress | None, outputs: list[Any] | None) -> Iterator[Visit]:
        counts = self._count_entries()
        forwards = [self._start(number, self._undone) for number in range(len(self.batches))]
        while (index := self._earliest(forwards)) < len(self.blocks):
            block = self.blocks[index]
            if progress and not block.passed:
                progress(*self._counted(), block.name)
            with self._on_device(index, dense=dense):
                calls = tuple(call for forward in forwards for call in self._calls(forward, index, counts))
                onward, state = dense and all(counts[call.batch][index] <= 1 for call in calls), _state(block)
                if dense > onward:
                    self.places.remember(block)
                yield Visit(block, calls, onward, partial(self._execute, block, state if onward else None))
                self.done.add(index)
                if dense > onward:
                    self.places.go_dense(block)
                    self.held.add(index)
                if onward and len(self.kept) < len(calls) and state != _state(block):
                    raise RessaError(f"{block.name} was changed before every batch had run it: none can go on as dense")
                for forward in forwards:
                    if forward.at == index:
                        self._resume(forward, counts, to_the_end=outputs is not None)
                # a batch that is to come again must find the block dense again
                give_back()
                if index in self.held and all(forward.gathered[index] <= 1 for forward in forwards):
                    self.held.remove(index)
                    self.places.go_changed(block)
        if progress:
            progress(self._counted()[1], self._counted()[1], "")
        if outputs is not None:
            outputs.extend(forward.output for forward in forwards)

    def _earliest(self, forwards: Sequence[Forward]) -> int:
        """The first block that a batch of any process stands at, which all visit; past the last when all have ended."""
        standing = [forward.at for forward in forwards if forward.at is not None]
        return min(team().exchange(min(standing, default=len(self.blocks))))

    def _counted(self) -> tuple[int, int]:
        """(blocks done, blocks in all), without those that are only passed."""
        done = sum(not self.blocks[index].passed for index in self.done)
        return done, sum(not block.passed for block in self.blocks)

    def enter(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the forward of block `index`."""
        forward = self.running.get(getcurrent())
        if forward is not None:
            if forward.pauses(index):
                self.places.settle((args, kwargs))
                forward.green.parent.switch((index, Call(forward.batch, args, kwargs)))
            if forward.pauses == self._undone:
                self._count(forward, index)
                if forward.batch in self.kept:
                    return self.kept.pop(forward.batch)
        return self._run_block(index, args, kwargs)

    def _undone(self, index: int) -> bool:
        return index not in self.done

    def _count(self, forward: Forward, index: int) -> None:
        forward.passed[index] += 1
        if not self.blocks[index].passed and forward.passed[index] > forward.gathered[index]:
            raise RessaError(
                f"{self.blocks[index].name} was pruned before batch {forward.batch} had entered it for the last time: "
                "its forward goes another way than that of a batch of the same shapes"
            )

    def _count_entries(self) -> list[Counter[int]]:
        """How often each batch will enter each block. Batches of one kind go the same way: only the first is run.

        Pictures (floating point) decide the way, so their shapes make the kind; more tokens only make it slower.
        """
        known: dict[tuple[Any, ...], Counter[int]] = {}
        counts = []
        with _idle_linears(self.model), self.places.standing_in():
            for number, batch in enumerate(self.batches):
                kind = tuple(sorted((key, kind_of(value)) for key, value in batch.items()))
                if kind not in known:
                    known[kind] = Counter(index for index, _ in self._entries(number, lambda _: True))
                counts.append(known[kind])
        return counts

    def _calls(self, forward: Forward, index: int, counts: list[Counter[int]]) -> list[Call]:
        """All entries of a batch into block `index`. It stands at the first; for more it must run ahead and back."""
        planned = counts[forward.batch][index]
        if self.blocks[index].passed:
            return []
        if forward.at == index and planned <= 1:
            calls = [forward.call] if forward.call else []
        else:
            probed = self._entries(forward.batch, lambda other: other == index, planned) if planned else ()
            calls = [call for _, call in probed]
        forward.gathered[index] = len(calls)
        return calls

    def _entries(self, number: int, pauses: Callable[[int], bool], limit: int = 0) -> Iterator[tuple[int, Call]]:
        """Where a forward of batch `number`, on its own, pauses; given up after `limit` of them if that is not 0."""
        probe = self._start(number, pauses)
        while probe.at is not None and probe.call is not None:
            yield probe.at, probe.call
            limit -= 1
            if not limit:
                break
            self._switch(probe)
        self._stop(probe)

    def _start(self, number: int, pauses: Callable[[int], bool]) -> Forward:
        batch = moved(dict(self.batches[number]), self.home)
        if not is_encoder_decoder(getattr(self.model, "config", None)):
            batch.pop("labels", None)  # only for a loss that nobody asked for, over the logits of all words
        # with a cache, running a block twice would double its keys
        green = greenlet(partial(self.model, **{**batch, "use_cache": False}))
        green.gr_context = contextvars.copy_context()
        forward = self.running[green] = Forward(number, green, pauses)
        self._switch(forward)
        return forward

    def _switch(self, forward: Forward) -> None:
        """Runs a forward until it pauses or ends. No gradients: the mode is the thread's, not the greenlet's."""
        green = forward.green
        green.parent = getcurrent()
        with torch.no_grad(), self.products():
            result = green.switch()
        if green.dead:
            forward.at, forward.call, forward.output = None, None, result
            self.running.pop(green, None)
        else:
            forward.at, forward.call = result

    def _resume(self, forward: Forward, counts: list[Counter[int]], *, to_the_end: bool) -> None:
        if to_the_end or counts[forward.batch].keys() - self.done:
            self._switch(forward)
        else:
            self._stop(forward)  # the head over all words is not worth running for nothing

    def _stop(self, forward: Forward) -> None:
        forward.at = forward.call = None
        self.running.pop(forward.green, None)
        if not forward.green.dead:
            forward.green.parent = getcurrent()
            forward.green.throw(GreenletExit)

    def _execute(self, block: Block, state: list[int] | None, call: Call) -> list[Any]:
        args, kwargs = (call.args, call.kwargs) if self.device is None else moved((call.args, call.kwargs), self.device)
        leaves = tree_leaves((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Cache))
        if any(isinstance(leaf, Cache) for leaf in leaves):
            raise RessaError(f"{block.name} is given a key-value cache although use_cache is off; leave its part out")
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        before = [version(tensor) for tensor in tensors]
        with suppress(StopForward), self.products():
            output = block.module(*args, **kwargs)
            if state == _state(block):
                self.kept.setdefault(call.batch, self._returned(output, call.args, call.kwargs))
                self.places.settle(self.kept[call.batch])
        if before != [version(tensor) for tensor in tensors]:
            raise RessaError(f"{block.name} changes its own arguments and cannot be run twice; leave its part out")
        return tensors

    def _run_block(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        original = self.originals[index][1]
        if self.device is None:  # a block that is not in memory is read by its own forward
            return original(*args, **kwargs)
        with self._on_device(index):
            there = moved((args, kwargs), self.device)
            return self._returned(original(*there[0], **there[1]), args, kwargs)

    def _returned(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`output` on the device that the arguments came from."""
        if self.device is None:
            return output
        home = next((leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), self.device)
        return moved(output, home)

    @contextmanager
    def _on_device(self, index: int, *, dense: bool = False) -> Iterator[None]:
        """Block `index` in memory and on the device, unless it is there already."""
        block = self.blocks[index]
        with self.places.present(block, dense=dense):
            if self.device is None or self.resident == index:
                yield
                return
            home, outer = self.home, self.resident
            block.module.to(self.device)
            self.resident = index
            try:
                yield
            finally:
                block.module.to(home)
                self.resident = outer


@contextmanager
def _idle_linears(model: PreTrainedModel) -> Iterator[None]:
    """Linears put out zeros: a forward goes the same way, which shapes decide, at a small part of the cost."""
    linears: list[Any] = [
        module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)
    ]
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for linear in linears:
        linear.forward = partial(_no_logits if linear is head else _zeros, linear.out_features)
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _zeros(width: int, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], width)


def _no_logits(width: int, x: Tensor) -> Tensor:
    """Of their shape; those of all tokens over all words would be larger than a block."""
    return x.new_zeros(()).expand(*x.shape[:-1], width)


def _state(block: Block) -> list[int]:
    """Changes when weights of the block do."""
    return [version(parameter) for parameter in block.module.parameters()]
