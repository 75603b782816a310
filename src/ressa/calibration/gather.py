"""One pass of all batches through a block, whose linears' inputs are captured by hooks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ressa.calibration.bare import BareReads
from ressa.calibration.experts import Experts
from ressa.calibration.sums import Found, Owners, Sums, steps
from ressa.calibration.tokens import TokenWeights
from ressa.calibration.visit import Call, StopForward, Visit
from ressa.errors import RessaError
from ressa.model.matrix import AsLinear, is_expert
from ressa.model.structure import Block

Reads = dict[str, list[Tensor]]  # by linear, in the order in which it was called


def gather(
    visit: Visit,
    needs: type[Any] | None,
    token_weights: Sequence[TokenWeights],
    only: Collection[str] | None = None,
    owners: Owners | None = None,
) -> dict[str, Any]:
    """The statistic `needs` of the inputs of each linear of the visited block (or of `only` these): {name: statistic}.

    Linears that read the same tensors (query, key and value; gate and up) share one statistic, so that a Gram is
    gathered and factored once. `token_weights[i]` are those of batch i. A linear that no batch reached is left out, as
    is an expert that no token that counts was sent to; and of several processes each gets those of the linears that it
    owns, over the batches of all.

    Raises:
        RessaError: linears read the same tensor in one batch and different ones in another.
    """
    if needs is None:
        return {}
    sums, experts = Sums(needs, owners or Owners(visit.block, needs)), Experts(visit.block, only)
    once = False
    for calls in steps(visit.calls):
        found: Found = []
        for call in calls:
            with experts.captured(token_weights[call.batch]):
                reads, given = capture(visit, call, only, once=once)
            alone = not visit.onward and all(len(tensors) == 1 for tensors in reads.values())
            once = alone and not experts and reads.keys() == _called(visit, only).keys()  # experts may come last
            found += _weighted(visit.block, reads, given, token_weights[call.batch]) + experts.taken()
            del reads  # before the next batch's come
        sums.add(found)
    return sums.whole()


def _weighted(block: Block, reads: Reads, given: list[Tensor], weights: TokenWeights) -> Found:
    """What linears of one input read, with the weights of its tokens."""
    crossed = {id(tensor) for tensor in given[1:]}  # the first is the block's own stream
    return [
        (tuple(names), [(x, weights.of(block, names[0], x, crossed=id(x) in crossed)) for x in reads[names[0]]])
        for names in same_input(reads)
    ]


def reading_order(visit: Visit) -> list[list[str]]:
    """The linears that the first batch calls, those that read the same input together, in the order of their calls.

    In most blocks: query, key and value; the attention's output; gate and up; down.
    """
    return same_input(capture(visit, visit.calls[0])[0]) if visit.calls else []


def capture(
    visit: Visit, call: Call, only: Collection[str] | None = None, *, once: bool = False
) -> tuple[Reads, list[Tensor]]:
    """What each linear reads in this call, and the tensors the block was given. All are kept: ids stay unique.

    `once`: each linear is called once, so the block need not be run any further than to the last of them.
    """
    reads: Reads = {}
    versions: list[tuple[str, Tensor, int]] = []
    linears = _called(visit, only)
    with _capture_hooks(linears, reads, versions, once):
        given = visit.run(call)
    uncalled = {name: one for name, one in linears.items() if name not in reads and isinstance(one, nn.Linear)}
    if uncalled:
        with BareReads(uncalled) as watch:
            visit.run(call)
        reads |= watch.reads
        versions += [(name, x, x._version) for name, found in watch.reads.items() for x in found]
    for name, x, version in versions:
        if x._version != version:
            raise RessaError(f"the input of {name} is overwritten within its block; leave its part out")
    return reads, given


def _called(visit: Visit, only: Collection[str] | None) -> dict[str, nn.Linear | AsLinear]:
    """The linears that are called; experts are not, see `calibration.experts`."""
    linears = visit.block.linears.items()
    return {name: linear for name, linear in linears if (only is None or name in only) and not is_expert(linear)}


@contextmanager
def _capture_hooks(
    linears: Mapping[str, nn.Linear | AsLinear], reads: Reads, versions: list[tuple[str, Tensor, int]], once: bool
) -> Iterator[None]:
    def hook(name: str) -> Any:
        def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            reads.setdefault(name, []).append(x)
            versions.append((name, x, x._version))
            if once and len(reads) == len(linears):
                raise StopForward

        return capture

    handles = [linear.register_forward_pre_hook(hook(name), with_kwargs=True) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same_input(reads: Reads) -> list[list[str]]:
    """Names of linears that read the same tensors, together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, tensors in reads.items():
        groups.setdefault(tuple(id(x) for x in tensors), []).append(name)
    return list(groups.values())
