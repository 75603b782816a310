"""How a step is carried out so that it fits the memory there is, and whether a teacher's cache will fit the disk.

What a step holds is reckoned from shapes (`costs.repairing`), as `inspect --plan` does; nothing is tried.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ressa.costs.repairing import MOMENTS, Way, cache_bytes, repair_bytes, ways
from ressa.costs.shapes import Sizes, Workload, picture, shape_of
from ressa.data.lengths import token_counts
from ressa.data.prompts import IGNORED, encode, is_encoder_decoder, shortest_first
from ressa.data.records import Record
from ressa.errors import RessaError, RessaWarning
from ressa.files.folders import nearest
from ressa.files.text import format_bytes, write_atomic
from ressa.machine import Machine, memory_there
from ressa.model.structure import Structure
from ressa.repairing.hidden import distilled_blocks
from ressa.repairing.settings import Repair
from ressa.repairing.student import Student

SHARE = 0.9  # of the memory there is: what is reckoned is not exact, and memory has gaps
NOTE = "memory.json"  # in the folder of checkpoints: a stopped run goes on in the same way


@dataclass(frozen=True)
class Fitted:
    """The way, the bytes that it is reckoned to hold, and those that were there (None: not known); whether it was
    `chosen` for their sake."""

    way: Way
    bytes: int
    there: int | None
    chosen: bool = False

    @property
    def told(self) -> dict[str, Any]:
        """What ressa.json says of it."""
        return {"memory": {"reckoned_bytes": self.bytes, "there_bytes": self.there, **asdict(self.way)}}

    def say(self) -> None:
        """One line, if memory is short."""
        if self.there is None or not (self.chosen or self.bytes > self.there):
            return
        needed, there = format_bytes(self.bytes), format_bytes(self.there)
        line = f"memory is short ({there}): {self.way}; a step is reckoned to hold {needed}"
        if self.bytes > self.there:
            line += ", which is more: take a teacher_cache or an 8-bit optim (ressa inspect --plan --memory reckons)"
        warnings.warn(line, RessaWarning, stacklevel=2)


def fit(sizes: Sizes, load: Workload, asked: Way, student: Student, settings: Repair, there: int | None) -> Fitted:
    """The fastest way that the settings leave open and that is reckoned to fit, else the one that holds least."""
    new = max(0, sum(p.numel() for p in student.model.parameters()) - sizes.parameters)
    whole = settings.batch_size if settings.paper else settings.micro_batch  # its KL counts padding, the batch's own
    again = settings.gradient_checkpointing
    found: list[Fitted] = []
    for way in ways(load, asked, (False, True) if again is None else (again,), whole):
        needed = int(sum(repair_bytes(sizes, load, way, new, max(0, student.trained - new)).values()))
        found.append(Fitted(way, needed, there, bool(found)))
        if there is None or needed <= SHARE * there:
            return found[-1]
    return min(found, key=lambda fitted: fitted.bytes)


def asked_for(settings: Repair, chosen: Machine, *, cached: bool) -> Way:
    """The way of complete settings if memory is no matter."""
    beside = settings.teacher_device in (None, str(chosen.device))
    return Way(
        width=chosen.compute.itemsize,
        teacher=settings.needs_teacher and not cached and beside,
        outputs=bool(settings.hidden_weight),
        moments=2 if "8bit" in (settings.optim or "") else MOMENTS,
        scores=chosen.device.type == "cpu",
    )


def workload(settings: Repair, processor: Any, config: Any, records: Sequence[Record]) -> Workload:
    """The largest batch: that of the longest records."""
    order = shortest_first(processor, records, answers=True)[-settings.batch_size :]
    batch: dict[str, Tensor] = encode(processor, [records[i] for i in order], config, answers=True)
    labels_BT, size = batch["labels"], settings.batch_size
    answers = -(-int((labels_BT != IGNORED).sum()) // len(order))
    tokens = batch.get("input_ids", labels_BT).shape[1]
    return Workload(size, size, tokens, _patches(batch, config), answers, is_encoder_decoder(config))


def _patches(batch: dict[str, Tensor], config: Any) -> int:
    """Patches of a record's pictures, all tiles of them."""
    pixels, count = batch.get("pixel_values"), len(batch["labels"])
    if pixels is None:
        return 0
    if pixels.ndim == 2:  # patches of all records, one beneath the other
        return -(-len(pixels) // count)
    return max(1, pixels.shape[:-3].numel() // count) * picture(config)[0]


def here(sizes: Sizes, chosen: Machine, processes: int) -> int | None:
    """The memory that a step may hold: what is free where it runs and, on a CPU, what the student has already."""
    free = memory_there(chosen.device)
    if free is None or chosen.device.type != "cpu":
        return free
    return free // processes + sizes.bytes(narrow=chosen.compute.itemsize < torch.float32.itemsize)


def note(work: Path, found: Fitted) -> None:
    """Keep the choice in `work`, and say it in a line, unless one was kept there when the run began."""
    file = work / NOTE
    if not file.is_file():
        write_atomic(file, json.dumps(asdict(found)))
        found.say()


def noted(work: Path) -> Fitted:
    """The choice that is kept in `work`."""
    found = json.loads((work / NOTE).read_text(encoding="utf-8"))
    return Fitted(Way(**found.pop("way")), **found)


def check_disk(
    folder: Path, settings: Repair, parts: Structure, processor: Any, config: Any, records: Sequence[Record]
) -> None:
    """Raises RessaError if what the teacher will say of the records is more than the disk holds."""
    blocks = distilled_blocks(parts) if settings.hidden_weight else []
    shapes, patches, crossing = [shape_of(block) for block in blocks], picture(config)[0], is_encoder_decoder(config)
    top_k = settings.top_k
    needed = sum(
        cache_bytes(shapes, Workload(1, 1, prompt if crossing else prompt + answer, patches, answer, crossing), top_k)
        for prompt, answer in token_counts(processor, config, records)
    )
    free = shutil.disk_usage(nearest(folder)).free
    if needed > free:
        raise RessaError(
            f"{folder}: the teacher's cache of {len(records)} records would take {format_bytes(needed)}, and "
            f"{format_bytes(free)} are free: take fewer samples, or hidden_weight and connector_weight 0"
        )
