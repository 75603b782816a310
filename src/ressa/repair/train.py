"""repair: train a pruned model against its dense original without losing one zero.

SparseLoRA on every pruned linear, and the unpruned parameters that are cheap to train as they are: norms, biases of
pruned linears, the connector. The loss is `distill.adaptation_loss`, the loop is transformers' Trainer.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import set_seed

from ressa.data.prompts import encode, is_encoder_decoder
from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.model.folder import check_output, patterns_of, read_manifest, write_folder
from ressa.model.load import load, read_config, resolve
from ressa.model.matrix import matrix
from ressa.patterns import Pattern
from ressa.provenance import peak_memory, plain, versions
from ressa.repair.student import Student, pruned_matrices, unwrap, wrap
from ressa.repair.trainer import Adaptation, Objective, Progress, Report, arguments, last_checkpoint


@dataclass(frozen=True)
class _Settings:
    """The arguments of `repair` that decide what comes out; the same names. Checked before anything is read."""

    steps: int | None
    samples: int | None
    batch_size: int
    lr: float
    warmup: float
    rank: int
    alpha: float
    kl_weight: float
    temperature: float
    hidden_weight: float
    paper: bool
    train_norms: bool
    train_biases: bool
    train_connector: bool
    seed: int
    bf16: bool

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "batch_size", "rank", "lr", "alpha", "temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RessaError(f"repair: {name} is {value}, but must be greater than 0")
        for name in ("kl_weight", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise RessaError(f"repair: {name} is {getattr(self, name)}, but must be between 0 and 1")
        if not self.hidden_weight >= 0:
            raise RessaError(f"repair: hidden_weight is {self.hidden_weight}, but must be at least 0")

    @property
    def hidden(self) -> float:
        """RESSA released nothing of the kind."""
        return 0.0 if self.paper else self.hidden_weight


def repair(
    pruned: str | Path,
    out: str | Path,
    *,
    teacher: str | Path,
    data: Any,
    split: str = "train",
    steps: int | None = None,
    samples: int | None = None,
    batch_size: int = 16,
    lr: float = 1e-3,
    warmup: float = 0.03,
    rank: int = 16,
    alpha: float = 32.0,
    kl_weight: float = 0.5,
    temperature: float = 2.0,
    hidden_weight: float = 1.0,
    paper: bool = False,
    train_norms: bool = True,
    train_biases: bool = True,
    train_connector: bool = True,
    seed: int = 0,
    bf16: bool = False,
    checkpoint_every: int = 100,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the kept weights of `pruned` so that it answers as `teacher` does, and write the merged model to `out`.

    A run that was stopped goes on from its last checkpoint when it is called again with the same arguments; it keeps
    them in a hidden folder beside `out`, which goes when `out` is written.

    Args:
        pruned: folder of the pruned model; its zeros are the mask.
        out: folder to write; must not exist or be empty.
        teacher: folder of the dense original.
        data: what `read_records` reads; `samples` of its `split` are drawn with `seed` (default: all).
        steps: optimiser steps (default: one pass over the samples); the records are gone through as often as needed.
        lr: peak learning rate; `warmup` is the share of the steps until it is reached, then cosine down to 0.
        rank, alpha: of SparseLoRA; the update is scaled by alpha / rank.
        kl_weight: a in (1 - a) * CE + a * KL; the teacher is not even loaded when this and `hidden_weight` are 0.
        hidden_weight: of the relative squared distance of all block outputs from the teacher's, added to the loss.
        temperature: of the KL, which is scaled by its square.
        paper: the KL as RESSA released it: summed over all positions, divided by the batch, no T^2; no hidden states.
        train_norms, train_biases, train_connector: what else is trained: norms, biases of pruned linears, connector.
        bf16: autocast to bfloat16.
        checkpoint_every: steps between two checkpoints.
        progress: called with (steps done, steps in all, "repair").

    Returns:
        The manifest, as written to ressa.json.

    Raises:
        RessaError: one line; before weights are loaded where that is possible.
    """
    given = {name: plain(value) for name, value in locals().items() if name not in ("out", "progress")}
    settings = _Settings(**{field.name: given[field.name] for field in fields(_Settings)})
    out, started = Path(out), time.perf_counter()
    check_output(out)
    _check_teacher(pruned, teacher)
    records = _draw(read_records(data, split), samples, seed)
    before = read_manifest(Path(resolve(pruned))) or {}
    model, processor = load(pruned)
    matrices = pruned_matrices(model, before)
    zeros = _zeros(model, matrices)
    set_seed(seed)  # A of every adapter is drawn
    student = wrap(
        model, matrices, rank=rank, alpha=alpha, norms=train_norms, biases=train_biases, connector=train_connector
    )
    work = _work_folder(out, {**asdict(settings), **_inputs(pruned, teacher, records)})
    try:
        log = _train(student, processor, teacher, records, settings, work, checkpoint_every, progress)
    finally:
        if not last_checkpoint(work):
            shutil.rmtree(work)  # nothing to go on from
    manifest = _manifest(given, matrices, log, before) | {"seconds": round(time.perf_counter() - started, 2)}
    write_folder(out, unwrap(student), processor, manifest, patterns=zeros)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def _zeros(model: nn.Module, matrices: dict[str, Any]) -> Any:
    """What `write_folder` is to verify on disk: for every pruned matrix its pattern and its very zeros."""
    patterns = patterns_of({"matrices": matrices})
    modules = {name: model.get_submodule(name) for name in patterns}
    weights_OI = {name: matrix(module, module.get_parameter("weight")) for name, module in modules.items()}
    return {name: _SameZeros(_digest(weights_OI[name]), pattern) for name, pattern in patterns.items()}


def _manifest(
    given: dict[str, Any], matrices: dict[str, Any], log: dict[str, Any], before: dict[str, Any]
) -> dict[str, Any]:
    """What ressa.json says: the request, what it ran on, what was trained, and the sparsity, which is as before."""
    return {
        "command": "repair",
        "arguments": given,
        "seed": given["seed"],
        "versions": versions("peft"),
        "peak_memory_bytes": peak_memory(),
        **log,
        "parts": before.get("parts") or _parts(matrices),
        "matrices": matrices,
        "before": {key: value for key, value in before.items() if key not in ("parts", "matrices")},
    }


def _parts(matrices: dict[str, Any]) -> dict[str, Any]:
    """The sums of the matrices over each part."""
    parts: dict[str, Counter[str]] = {}
    for entry in matrices.values():
        counts = Counter(matrices=1, weights=entry["weights"], zeros=entry["zeros"])
        parts.setdefault(entry["part"], Counter()).update(counts)
    return {name: {**counts, "sparsity": counts["zeros"] / counts["weights"]} for name, counts in parts.items()}


def _check_teacher(pruned: str | Path, teacher: str | Path) -> None:
    """Refuse, from the configs alone, a teacher whose answers cannot be compared token by token."""
    sparse, dense = read_config(pruned), read_config(teacher)
    for what, one, two in (
        ("a {} model", sparse.model_type, dense.model_type),
        ("a vocabulary of {}", sparse.get_text_config().vocab_size, dense.get_text_config().vocab_size),
    ):
        if one != two:
            raise RessaError(
                f"teacher {teacher} has {what.format(two)}, {pruned} has {what.format(one)}: name its dense original"
            )


def _draw(records: list[Record], samples: int | None, seed: int) -> list[Record]:
    return records if samples is None else random.Random(seed).sample(records, min(samples, len(records)))


def _train(
    student: Student,
    processor: Any,
    teacher: str | Path,
    records: list[Record],
    settings: _Settings,
    work: Path,
    checkpoint_every: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Train in place, going on from the last checkpoint in `work` if there is one; what the manifest says of it."""
    config = student.model.config
    untouched = dict(vars(config))
    steps = settings.steps or -(-len(records) // settings.batch_size)
    if not torch.accelerator.is_available():
        student.model.set_attn_implementation("eager")  # on a CPU the backward of fused attention takes far longer
    trainer = Adaptation(
        model=student.model,
        teacher=load(teacher)[0].float().requires_grad_(False) if settings.kl_weight or settings.hidden else None,
        objective=Objective(settings.kl_weight, settings.temperature, settings.paper, _crossing(config)),
        hidden_weight=settings.hidden,
        args=arguments(
            work,
            steps=steps,
            checkpoint_every=checkpoint_every,
            **{name: getattr(settings, name) for name in ("batch_size", "lr", "warmup", "seed", "bf16")},
        ),
        train_dataset=records,
        data_collator=lambda batch: encode(processor, batch, config, answers=True),
        callbacks=[Report(progress)] if progress else None,
    )
    checkpoint = last_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    vars(config).clear()
    vars(config).update(untouched)  # Trainer turns use_cache off there, and the folder would keep it
    keys = {"step": "step", "loss": "loss", "learning_rate": "lr"}
    history = [{keys[k]: v for k, v in e.items() if k in keys} for e in trainer.state.log_history if "loss" in e]
    return {"steps": steps, "samples": len(records), "trained_parameters": student.trained, "history": history}


def _crossing(config: Any) -> tuple[int, int] | None:
    """(decoder start id, pad id) of an encoder-decoder, None for a decoder-only model."""
    text = getattr(config, "text_config", config)
    return (text.decoder_start_token_id, text.pad_token_id) if is_encoder_decoder(config) else None


def _inputs(pruned: str | Path, teacher: str | Path, records: list[Record]) -> dict[str, Any]:
    """What tells whether a stopped run was about the same models and data."""
    digest = hashlib.sha256()
    for record in records:
        image = record.image.identity() if record.image else None
        digest.update(repr((record.id, record.question, record.prefix, record.references, image)).encode())
    return {"pruned": _stamp(pruned), "teacher": _stamp(teacher), "data": digest.hexdigest()}


def _stamp(name: str | Path) -> list[Any]:
    """Names, sizes and times of a model's files; a hub name stands for itself."""
    folder = Path(resolve(name))
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json"))
    return [str(name), *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def _work_folder(out: Path, identity: dict[str, Any]) -> Path:
    """The hidden folder beside `out` for checkpoints; emptied unless it was made by a run with the same identity."""
    work = out.parent / f".{out.name}.train"
    note, text = work / "arguments.json", json.dumps(identity, indent=1)
    if not note.is_file() or note.read_text(encoding="utf-8") != text:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        note.write_text(text, encoding="utf-8")
    return work


@dataclass(frozen=True)
class _SameZeros:
    """Stands where `folder.verify` expects a pattern: holds for weights with exactly the zeros of `digest`."""

    digest: str
    pattern: Pattern

    def holds(self, weight_OI: Tensor) -> bool:
        """Whether the zeros are the same ones, no more and no fewer."""
        return _digest(weight_OI) == self.digest and self.pattern.holds(weight_OI)

    def __str__(self) -> str:
        return "zero exactly where it was before repair"


def _digest(weight_OI: Any) -> str:
    return hashlib.sha256(numpy.packbits((weight_OI == 0).numpy(force=True)).tobytes()).hexdigest()
