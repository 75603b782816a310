"""Several processes that share the work, as `accelerate launch` and `torchrun` start them.

`evaluate` shares out questions and gathers answers. `prune` works `together`: the processes are a `team` that does
everything in step, and ends as one when one of them fails.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

from ressa.errors import RessaError, one_line

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}  # words go by way of the CPU
PATIENCE = timedelta(days=1)  # for the others, who may solve for the widest of linears


def world_size() -> int:
    """How many processes share the work; 1 unless a launcher started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is; 0 writes the results and tells of them."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def device_of(device: str) -> str:
    """This process's own device of those that `device` names: "cuda" is "cuda:1" for the second process."""
    from ressa.machine import ACCELERATORS, AUTO, found

    if world_size() == 1 or device not in (AUTO, *ACCELERATORS):
        return device
    kind = found().first if device == AUTO else device
    return kind if kind in ("cpu", "mps") else f"{kind}:{os.environ.get('LOCAL_RANK', '0')}"


def shard(batches: Sequence[Any]) -> list[Any]:
    """This process's own batches: every N-th, so that all get short and long ones."""
    return list(batches[rank() :: world_size()])


def all_gather(mine: dict[str, Any]) -> dict[str, Any]:
    """The union of what the processes have; waits for all of them."""
    if world_size() == 1:
        return mine
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    PartialState(cpu=not torch.cuda.is_available())  # joins the group of processes
    return {key: value for part in gather_object([mine]) for key, value in part.items()}


def close() -> None:
    """Leave the group of processes, if this one has joined it."""
    from torch import distributed

    if world_size() > 1 and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()  # or the first to leave would take the group's store with it
        distributed.destroy_process_group()


def _dealt(shares: Sequence[Sequence[T]]) -> list[T]:
    """The first of each, then the second of each, and so on."""
    return [share[i] for i in range(max(map(len, shares))) for share in shares if i < len(share)]


class Team:
    """The processes that do one thing in step; alone, nothing waits and nothing is sent.

    Words and tensors go in one order that all know. Before tensors are sent all have said that they are well, so that
    a process which fails is heard by the others wherever they come to next.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._said: dict[int, Any] = {}  # what was said last, by its digest
        self._parted = False  # the others know that this process leaves, or cannot be told

    def exchange(self, mine: T) -> list[T]:
        """What every process says, in the order of their ranks.

        Raises:
            RessaError: one of them has failed; the text is its own.
        """
        said = self._exchange((mine, ""))
        for _, failure in said:
            if failure:
                self._parted = True
                _tell_once()
                raise RessaError(failure)
        return [words for words, _ in said]

    def in_order(self, mine: Sequence[T]) -> list[T]:
        """What all processes have, one entry a batch, in the order in which one process would come to the batches."""
        return _dealt(self.exchange(list(mine)))

    def own(self, mine: Sequence[T]) -> list[T | None]:
        """As `in_order`, of this process's entries alone: None stands for those of others, which are not sent."""
        shares: list[list[T | None]] = [[None] * count for count in self.exchange(len(mine))]
        shares[self.rank] = list(mine)
        return _dealt(shares)

    @contextmanager
    def after_the_first(self) -> Iterator[None]:
        """The first process does what is within, then the others."""
        if self.rank:
            self.exchange(None)
        yield
        if not self.rank:
            self.exchange(None)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Within, tensors are sent: whoever fails there leaves without a word, for the others wait for no words."""
        try:
            yield
        except BaseException:
            self._parted = True
            raise

    def send(self, tensor: Tensor, to: int) -> None:
        from torch import distributed

        with _heard():
            distributed.send(tensor.contiguous(), to)

    def receive(self, tensor: Tensor, sender: int) -> Tensor:
        """`tensor`, filled."""
        from torch import distributed

        with _heard():
            distributed.recv(tensor, sender)
        return tensor

    def broadcast(self, tensor: Tensor, sender: int) -> None:
        """`tensor` becomes what it is for the sender, in its bytes."""
        import torch
        from torch import distributed

        there = tensor.contiguous()
        with _heard():
            distributed.broadcast(there.view(torch.uint8), sender)
        if self.rank != sender and there.data_ptr() != tensor.data_ptr():
            tensor.copy_(there)

    def fail(self, error: Exception) -> None:
        """Tells the others, unless they know."""
        if not self._parted:
            known = isinstance(error, RessaError)
            failure = str(error) if known else f"process {self.rank} failed: {type(error).__name__}: {one_line(error)}"
            with suppress(RessaError):
                self._exchange((None, failure))
                _tell_once()

    def _exchange(self, words: tuple[Any, str]) -> list[tuple[Any, str]]:
        """Digests go first: who says what was said last, as at every batch of a block, need not say it again."""
        if self.size == 1:
            return [words]
        from torch import distributed

        said: list[Any] = [None] * self.size
        with self.sending(), _heard():
            digests = self._digests(words)
            if all(digest in self._said for digest in digests):
                return [self._said[digest] for digest in digests]
            distributed.all_gather_object(said, words)
        self._said = dict(zip(digests, said, strict=True))
        return said

    def _digests(self, words: Any) -> list[int]:
        """Of what each process says, in 64 bits."""
        import torch
        from torch import distributed

        mine = int.from_bytes(blake2b(pickle.dumps(words), digest_size=8).digest(), "big", signed=True)
        found = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(found, torch.tensor([mine]))
        return [int(digest) for digest in found]


_team, _known = Team(), False


def silent() -> bool:
    """Whether this process need not say why it ends: all know it, and the first one says it."""
    return _known and rank() > 0


@contextmanager
def alike() -> Iterator[None]:
    """What is wrong within is wrong in all processes, for they are told the same."""
    try:
        yield
    except RessaError:
        _tell_once()
        raise


def _tell_once() -> None:
    global _known
    _known = True


def team() -> Team:
    """The processes that this one works with; itself alone, unless it is within `together`."""
    return _team


@contextmanager
def together(device: str) -> Iterator[Team]:
    """All processes that were started work as a team meanwhile, each on its own `device`; all end if one fails."""
    global _team
    if world_size() == 1 or _team.size > 1:
        yield _team
        return
    joined = _join(device_of(device))
    _team = ours = Team(rank(), world_size())
    try:
        yield ours
        ours.exchange(None)  # or the first to leave would take the group's store with it
    except Exception as error:
        ours.fail(error)
        raise
    finally:
        _team = Team()
        if joined:
            _leave()


def _join(device: str) -> bool:
    """Joins the group of processes; False if this one is in it already."""
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return False
    kind = device.partition(":")[0]
    if kind in BACKENDS:
        getattr(torch, kind).set_device(device)
    with _heard():
        distributed.init_process_group(BACKENDS.get(kind, "gloo"), timeout=PATIENCE)
    return True


def _leave() -> None:
    from torch import distributed

    with suppress(RuntimeError):  # others may be gone
        distributed.destroy_process_group()


@contextmanager
def _heard() -> Iterator[None]:
    """What torch raises where another process is gone, in a line."""
    try:
        yield
    except RuntimeError as error:
        raise RessaError(
            f"another process has ended ({one_line(error, 80)}): see what it said and start all of them again"
        ) from None
