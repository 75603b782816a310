"""The dense teacher: as a second model, on any device, or as what it once said, kept on disk.

A cache is a folder: for every record the log-probabilities of the likeliest words at each of its answer's places, and
the outputs of blocks if hidden states are distilled (bfloat16). `about.json`, written last, says of which model,
records and settings it is; for others it is refused. Reading it needs no teacher in memory.

Shapes: B records, T tokens, D width, N answer places of a batch, K likeliest words.
"""

# ruff: noqa: N815  (shape suffixes are part of our names)

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ressa.calibration.logits import logits_at
from ressa.calibration.outputs import outputs_of
from ressa.data.prompts import IGNORED, encode, is_encoder_decoder, shortest_first
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.files.folders import partial as partial_of
from ressa.model.load import resolve
from ressa.model.precision import widened
from ressa.model.structure import Block, same_blocks
from ressa.repairing.distill import top_words
from ressa.repairing.hidden import Outputs
from ressa.settings import Progress

ABOUT = "about.json"
ANSWERS = "labels*.jsonl"  # what `labels.labelled` keeps in the same folder, and before it is asked for anything else


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher says of a batch: logits at all places, or the likeliest words; and the outputs of blocks.

    Each output is given when it is asked for: by a live teacher as long as somebody may ask, by a cache as often as
    somebody does.
    """

    logits_NV: Tensor | None = None
    top_NK: Tensor | None = None
    words_NK: Tensor | None = None
    outputs: Outputs = field(default_factory=dict)

    @property
    def words(self) -> list[Tensor]:
        """(logits) of a live teacher, (log-probabilities, which words) of a cache, or nothing; rows are positions."""
        return [x for x in (self.logits_NV, self.top_NK, self.words_NK) if x is not None]


class Teacher:
    """A dense model that answers the student's batches, without any graph."""

    def __init__(self, model: PreTrainedModel, device: Any, blocks: Iterable[Block], *, bf16: bool) -> None:
        """The outputs of `blocks`, which may be the student's, are told beside the logits."""
        widened(model.requires_grad_(False), torch.bfloat16 if bf16 else torch.float32)
        self.model = model.eval().to(device)
        self.bf16 = bf16
        self.blocks = same_blocks(blocks, self.model)

    def __call__(self, inputs: dict[str, Any], positions_BT: Tensor) -> TeacherOutput:
        """`inputs` as the student's forward takes them, wherever they are; the logits come to the same device, the
        outputs stay where they were made."""
        home, device = positions_BT.device, self.model.device
        there = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)
        with torch.no_grad(), autocast, outputs_of(self.blocks) as outputs:
            logits_NV = logits_at(self.model, there, positions_BT)
        given = {name: [partial(_itself, y) for y in calls] for name, calls in outputs.items()}
        return TeacherOutput(logits_NV.to(home), outputs=given)


def _itself(y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True)
class Cache:
    """Reads what `write_cache` wrote: `cache([3, 0])` is what the teacher said of records 3 and 0.

    Outputs of blocks are read from the files whenever they are asked for, so that those of one block are in memory.
    """

    folder: Path
    blocks: tuple[str, ...]
    share: int

    def __call__(self, indices: Sequence[int], device: Any = "cpu") -> TeacherOutput:
        """The likeliest words on `device`, (N, K) each, and outputs (B, T, D), padded with zeros, from the CPU."""
        top_NK, words_NK = (torch.cat(self._rows(indices, key)).to(device) for key in ("top", "words"))
        outputs = {name: [partial(self._padded, indices, name)] for name in self.blocks}
        return TeacherOutput(None, top_NK, words_NK.long(), outputs)

    def _padded(self, indices: Sequence[int], block: str) -> Tensor:
        return pad_sequence(self._rows(indices, block), batch_first=True)

    def _rows(self, indices: Sequence[int], key: str) -> list[Tensor]:
        rows = []
        for index in indices:
            with safe_open(_part(self.folder, index // self.share), framework="pt") as file:
                rows.append(file.get_tensor(f"{index}.{key}").clone())
        return rows


def open_cache(folder: Path, identity: dict[str, Any]) -> Cache | None:
    """The cache in `folder`, None if there is none yet.

    Raises:
        RessaError: it is of another model, other records or other settings.
    """
    file = folder / ABOUT
    if not file.is_file():
        if folder.exists() and any(not left.match(ANSWERS) for left in folder.iterdir()):
            raise RessaError(f"{folder}: is no teacher's cache, and not empty; name another folder")
        return None
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        found, cache = about["identity"], Cache(folder, tuple(about["blocks"]), about["share"])
    except (ValueError, KeyError, TypeError):
        raise RessaError(f"{file}: cannot be read; delete the folder to write the cache anew") from None
    if other := [key for key, value in identity.items() if found.get(key) != value]:
        raise RessaError(
            f"{folder}: was written with another {', '.join(other)}; name another folder, or delete it to write it anew"
        )
    return cache


@dataclass(frozen=True)
class Recorder:
    """Asks the teacher what the cache keeps of records; `asking` makes of a batch with labels (inputs, positions)."""

    teacher: Teacher
    processor: Any
    asking: Callable[[dict[str, Tensor]], tuple[dict[str, Any], Tensor]]
    top_k: int
    temperature: float

    def __call__(self, records: Sequence[Record]) -> list[dict[str, Tensor]]:
        """What is kept of each record of one batch."""
        teacher, config = self.teacher, self.teacher.model.config
        batch = encode(self.processor, records, config, answers=True)
        inputs, positions_BT = self.asking(batch)
        output, counts = teacher(inputs, positions_BT), positions_BT.sum(1).tolist()
        assert output.logits_NV is not None
        top, words = (x.split(counts) for x in top_words(output.logits_NV, self.top_k, self.temperature))
        found = [{"top": t.clone(), "words": w.int()} for t, w in zip(top, words, strict=True)]
        outputs = {name: [give() for give in calls] for name, calls in output.outputs.items()}
        for block in teacher.blocks:
            for entry, row in zip(found, _rows(outputs[block.name], block, batch, config), strict=True):
                entry[block.name] = row.to(torch.bfloat16, copy=True).contiguous()
        return found


def write_cache(
    folder: Path,
    identity: dict[str, Any],
    recorder: Recorder,
    records: Sequence[Record],
    *,
    batch_size: int,
    progress: Progress | None = None,
    share: int = 64,
) -> Cache:
    """Ask the teacher about every record once and keep it; the folder appears whole or not at all.

    Args:
        share: records in a file.
    """
    names = tuple(block.name for block in recorder.teacher.blocks)
    with partial_of(folder.absolute()) as partial:
        for start in range(0, len(records), share):
            chosen = records[start : start + share]
            tensors: dict[str, Tensor] = {}
            order = shortest_first(recorder.processor, chosen, answers=True)
            for at in range(0, len(order), batch_size):
                if progress:
                    progress(start + at, len(records), "asking the teacher")
                places = order[at : at + batch_size]
                for i, found in zip(places, recorder([chosen[i] for i in places]), strict=True):
                    tensors |= {f"{start + i}.{key}": tensor for key, tensor in found.items()}
            save_file(tensors, _part(partial, start // share))
        about = {"identity": identity, "blocks": names, "share": share}
        (partial / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        if folder.is_dir():
            for file in folder.glob(ANSWERS):
                os.replace(file, partial / file.name)
            folder.rmdir()
        os.replace(partial, folder)
    return Cache(folder, names, share)


def _rows(outputs: Sequence[Tensor], block: Block, batch: dict[str, Tensor], config: Any) -> list[Tensor]:
    """A block's output record by record, (T, D) each, without padding."""
    count = len(batch["labels"])
    if len(outputs) != 1 or len(outputs[0]) != count:
        raise RessaError(
            f"{block.name} does not run once with one row for each record (pictures of several tiles, or records "
            "without one): its outputs cannot be cached; set hidden_weight and connector_weight to 0, or use no cache"
        )
    y = outputs[0]
    if block.part != "language":
        return list(y)
    decoder = block.stack == "decoder" and is_encoder_decoder(config)
    mask_BT = batch["labels"] != IGNORED if decoder else batch["attention_mask"].bool()
    if mask_BT.shape != y.shape[:2]:
        raise RessaError(f"{block.name} has other tokens than its text: its outputs cannot be cached; use no cache")
    return [row[mask] for row, mask in zip(y, mask_BT, strict=True)]


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.safetensors"


def model_hash(name: str | Path) -> str:
    """SHA-256 of a model's weights and config, wherever the folder lies."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(name), allow_patterns=["*.safetensors", "*.json"]))
    digest = hashlib.sha256()
    for file in [*sorted(folder.glob("*.safetensors")), folder / "config.json"]:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
