"""Several processes that share the asking: `accelerate launch --num_processes N -m ressa evaluate ...`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ressa.machine import ACCELERATORS, AUTO, found


def world_size() -> int:
    """How many processes share the work; 1 unless a launcher started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is; 0 writes the results and tells of them."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def device_of(device: str) -> str:
    """This process's own device of those that `device` names: "cuda" is "cuda:1" for the second process."""
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
