"""repair: train a pruned model against its dense original without losing one zero.

An adapter on every pruned linear, and the unpruned parameters that are cheap to train as they are: norms, biases of
pruned linears, the connector. Before it, if asked for, the reconstruction of block after block. The losses are in
`distill` and `hidden`, the loop is transformers' Trainer. Under `accelerate launch` every process runs this; the first
one writes.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
from accelerate import PartialState
from torch import Tensor, nn

from ressa.calibration.rehearsal import rehearse
from ressa.calibration.resume import digest_of, stamp
from ressa.errors import RessaError
from ressa.machine import forget_peak, peak_memory, plain, versions
from ressa.model.folder import (
    check_output,
    check_writable,
    patterns_of,
    read_manifest,
    refuse_adapter,
    refuse_packed,
    write_folder,
)
from ressa.model.load import load, read_config, resolve
from ressa.model.matrix import weight_of
from ressa.model.pickles import check_pickle
from ressa.patterns import Pattern
from ressa.repairing.labels import forget, records_of
from ressa.repairing.settings import Repair
from ressa.repairing.stages import Run, Where
from ressa.repairing.student import merged, student_of, unrounded
from ressa.repairing.trainer import check_optim, check_reports, logs_beside, sharded
from ressa.settings import Progress, Runtime, check_paths


def repair(
    pruned: str | Path,
    out: str | Path,
    *,
    teacher: str | Path,
    data: Any,
    settings: Repair,
    runtime: Runtime,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the kept weights of `pruned` so that it answers as `teacher` does, and write the merged model to `out`.

    A run that was stopped goes on from its last checkpoint when it is called again with the same arguments; it keeps
    them in a hidden folder beside `out`, which goes when `out` is written.

    Args:
        pruned: folder of the pruned model; its zeros are the mask.
        out: folder to write; must not exist or be empty.
        teacher: folder of the dense original.
        data: what `read_records` reads; `samples` of its `split` are drawn (default: all). Who answers say `labels`.
        progress: called with (steps done, steps in all, what).

    Raises:
        RessaError: one line; before weights are loaded where that is possible.
    """
    check_paths("repair", pruned=pruned, out=out, teacher=teacher)
    started = time.perf_counter()
    forget_peak()
    where, whole = Where.of(settings, runtime), settings.complete
    out = _check(pruned, out, teacher, whole)
    before = read_manifest(Path(resolve(pruned))) or {}
    processes = PartialState(cpu=where.on_cpu)
    told = progress if processes.is_main_process else None
    records, labels = records_of(data, teacher, whole, where, out, told)
    run = Run(whole, where, teacher, records, processes, told)
    cache = run.cache()
    model, processor = load(pruned)
    rehearse(model, processor, records)
    student = student_of(model, before)
    zeros, chosen = _zeros(model, student.matrices), where.machine(model)
    identity = whole.identity | {"compute": str(chosen.compute), "pruned": stamp(pruned), "teacher": stamp(teacher)}
    identity |= {"data": digest_of(records)}  # a stopped run goes on if it was about the same
    with run.work_folder(out, identity) as work, logs_beside(out):
        student, log = run.carry_out(student, processor, cache, work, chosen)
        if sharded(student.model):
            student = run.whole(student, student_of(load(pruned)[0], before), processor, work, chosen)
    arguments = {"pruned": plain(pruned), "teacher": plain(teacher), "data": plain(data)} | asdict(settings)
    manifest = _manifest(arguments | asdict(runtime), student.matrices, labels | log, before)
    manifest |= {"seconds": round(time.perf_counter() - started, 2)}
    if processes.is_main_process:
        if student.rounded:
            unrounded(student, load(pruned)[0])
        model, also = merged(student)
        write_folder(out, model, processor, manifest, patterns=zeros, also=also)
        shutil.rmtree(work, ignore_errors=True)
        forget(out)
    processes.wait_for_everyone()
    return manifest


def _check(pruned: str | Path, out: str | Path, teacher: str | Path, settings: Repair) -> Path:
    """All that can be refused before data are read; the folder to write."""
    check_reports(settings.report_to)
    check_optim(settings.optim)
    folder = check_output(out, resolve(pruned), resolve(teacher))
    if settings.teacher_cache is not None:
        check_writable(settings.teacher_cache, resolve(pruned), resolve(teacher))
    refuse_adapter(pruned)
    _check_teacher(pruned, teacher)
    refuse_packed(pruned, teacher)
    return folder


def _zeros(model: nn.Module, matrices: dict[str, Any]) -> Any:
    """What `write_folder` is to verify on disk: for every pruned matrix its pattern and its very zeros."""
    patterns = patterns_of({"matrices": matrices})
    return {name: _SameZeros(_digest(weight_of(model, name)), pattern) for name, pattern in patterns.items()}


def _manifest(
    arguments: dict[str, Any], matrices: dict[str, Any], log: dict[str, Any], before: dict[str, Any]
) -> dict[str, Any]:
    """What ressa.json says: the request, what it ran on, what was trained, and the sparsity, which is as before."""
    return {
        "command": "repair",
        "arguments": arguments,
        "seed": arguments["seed"],
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
    for name in (pruned, teacher):
        check_pickle(resolve(name))
    sparse, dense = read_config(pruned), read_config(teacher)
    for what, one, two in (
        ("a {} model", sparse.model_type, dense.model_type),
        ("a vocabulary of {}", sparse.get_text_config().vocab_size, dense.get_text_config().vocab_size),
    ):
        if one != two:
            raise RessaError(
                f"teacher {teacher} has {what.format(two)}, {pruned} has {what.format(one)}: name its dense original"
            )


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
