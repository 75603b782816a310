"""The verb `evaluate`: put a task to a model, score it, compare it with the dense model and with another one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ressa import parallel, tasks
from ressa.calibration.rehearsal import check_room
from ressa.data.images import GreyImage
from ressa.errors import RessaError, to_json
from ressa.evaluation import matching, summary
from ressa.evaluation.ask import Asked, ask
from ressa.evaluation.divergence import compared, kept_beside, own_sums
from ressa.evaluation.settings import Evaluate
from ressa.files.paths import expanded, path_of
from ressa.files.text import write_atomic
from ressa.machine import Machine, check_machine
from ressa.model.folder import check_writable
from ressa.model.load import load_to_ask, read_config, resolve
from ressa.settings import Progress, Runtime, check_paths
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.retrieval import queries

Model = str | Path | tuple[Any, Any]


def evaluate(
    model: Model,
    *,
    data: str | Path | Any,
    settings: Evaluate,
    runtime: Runtime,
    against: Model | None = None,
    versus: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model's answers to a task.

    Args:
        model: a model folder or name, or a loaded (model, processor).
        data: a folder with the task's official files, one of them, or a hub dataset; for `folder` what `read_records`
            reads.
        against: the dense model, for `kl`: the mean over answer tokens of KL(dense || model), in nats; and both
            models' perplexity of the reference answers.
        versus: the `out` folder of another model's evaluation: adds differences, their intervals and p.
        out: a folder for scores.json, answers.jsonl (question, references and answer of each record) and
            answers.cache.jsonl (a killed run goes on from there).
        progress: called with (questions done, in all, what).

    Returns:
        n, the task's metrics (0 to 1; CIDEr to 10), kl (None without `against`), perplexity, intervals, by_kind
        {kind: the same}, prompt (of the first record), settings, seconds, versions; `answers` {record id: answer},
        which scores.json leaves out; that says `command`, as ressa.json does. Of several processes each gets the same.

    Raises:
        RessaError: anything wrong with the data, the models, the output folder or a number.
    """
    started = time.monotonic()
    check_models(model, against, out, versus)
    check_machine(parallel.device_of(runtime.device), runtime.dtype, runtime.threads)
    task, source, reading = questions(data, settings)
    folder = _writable(out, model, data)
    if versus is not None:
        summary.answers_to(queries(reading.samples) if task.mode == "retrieval" else reading.samples, versus)
    if against is not None:
        check_vocabularies(model, against)
    asked, sums, machine = _both(Job(task, reading.samples, settings, runtime, folder, progress), model, against)
    scores, rows = _scored(task, asked, sums, against is not None, versus)
    scores |= {"task": task.name, "model": _name(model), "against": against and _name(against)}
    scores |= {"split": source.split, "grey": settings.grey, "data": _named(data)}
    scores |= _circumstances(asked, settings, reading, task, machine)
    scores |= {"seconds": round(time.monotonic() - started, 2)}
    if folder and parallel.rank() == 0:
        write_atomic(folder / "answers.jsonl", "".join(to_json(r) + "\n" for r in rows))
        write_atomic(folder / "scores.json", to_json({"command": "evaluate"} | scores, indent=2) + "\n")
    parallel.close()
    return scores | {"answers": {s.record.id: answer for s, answer in zip(asked.samples, asked.answers, strict=True)}}


def _circumstances(asked: Asked, settings: Evaluate, reading: Reading, task: Task, machine: Machine) -> dict[str, Any]:
    """What scores.json says of how the answers came about."""
    return {
        "prompt": asked.prompt,
        "settings": asked.settings | {"batch_size": settings.batch_size, "limit": settings.limit},
        "pictures": asked.seen,
        "left_out": dict(reading.left_out),
        "missing": task.missing(),
        "processes": parallel.world_size(),
        "machine": machine.describe(),
        "versions": {name: version(name) for name in ("ressa", "torch", "transformers")},
    }


def questions(data: Any, settings: Evaluate) -> tuple[Task, Source, Reading]:
    """The task, where it is read, and what is asked of that. No model is looked at.

    Raises:
        RessaError: as `evaluate`, for all that can be told without a model.
    """
    if data is None:
        raise RessaError("evaluate: needs data, where the records or the task's files are")
    task = tasks.get(settings.task)
    place = path_of(settings.images, "images") if settings.images is not None else None
    source = Source(_place(data), settings.split or task.split, place)
    reading = task.read(source)
    samples = _chosen(reading.samples, settings.limit, settings.grey)
    if not samples:
        raise RessaError(f"{data}: nothing to ask in {source.split} ({dict(reading.left_out) or 'it is empty'})")
    _check_ids(samples, data)
    return task, source, replace(reading, samples=samples)


@dataclass(frozen=True)
class Job:
    """What every model is asked, how, and where its answers are kept meanwhile."""

    task: Task
    samples: Sequence[Sample]
    settings: Evaluate
    runtime: Runtime
    folder: Path | None
    progress: Progress | None


def _both(job: Job, model: Model, against: Model | None) -> tuple[Asked, summary.Sums | None, Machine]:
    """What the model answers, what it and the dense one say of the reference answers, and where it was computed.

    One model is in memory at a time: the first is gone before the dense one is loaded.
    """
    with kept_beside(job.folder) as kept:
        mine = _asked(job, model, kept if against is not None else None)
        if against is None:
            return mine.asked, mine.sums, mine.machine
        dense, _, _ = _loaded(against, job.runtime)
        check_room(dense, mine.processor, mine.asked.records)
        size, records = job.settings.batch_size, mine.asked.records
        sums = compared(dense, mine.config, mine.processor, records, size, job.progress, kept)
        return mine.asked, sums, mine.machine


@dataclass(frozen=True)
class Mine:
    """All that is left of a model once it was asked."""

    asked: Asked
    sums: summary.Sums | None
    machine: Machine
    processor: Any
    config: Any


def _asked(job: Job, model: Model, kept: Path | None) -> Mine:
    """The model loaded and asked; it goes with this function's end, unless the caller holds it."""
    task, settings = job.task, job.settings
    perplexity = kept is not None or settings.perplexity
    net, processor, machine = _matcher(model, task, perplexity, job.runtime) or _loaded(model, job.runtime)
    cache = job.folder / "answers.cache.jsonl" if job.folder else None
    asked, sums = ask(net, processor, task, job.samples, settings, cache, job.progress), None
    if perplexity:
        check_room(net, processor, asked.records)
        sums = own_sums(net, processor, asked.records, settings.batch_size, job.progress, kept)
    return Mine(asked, sums, machine, processor, net.config)


def _scored(
    task: Task, asked: Asked, sums: summary.Sums | None, dense: bool, versus: str | Path | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(scores, one row a sample)."""
    samples, answers = asked.samples, asked.answers
    measured = task.measure(samples, answers)
    scores = summary.scores(task, samples, answers, measured, sums, dense)
    if versus is not None:
        scores["versus"] = summary.versus(task, samples, measured, versus)
    return scores, summary.rows(samples, answers, measured, sums, dense)


def _chosen(samples: Sequence[Sample], limit: int | None, grey: bool) -> list[Sample]:
    """At most `limit` samples, those of a group all or none; grey pictures if wanted."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.group or f"#{i}", []).append(i)
    parts = list(groups.values())
    if limit is not None and limit < len(parts):
        parts = [parts[i] for i in sorted(random.Random(0).sample(range(len(parts)), limit))]
    chosen = [samples[i] for part in parts for i in part]
    return [_grey(sample) for sample in chosen] if grey else chosen


def _check_ids(samples: Sequence[Sample], data: Any) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.record.id in seen:
            raise RessaError(f"{_named(data)}: two records are called '{sample.record.id}'; give each its own id")
        seen.add(sample.record.id)


def _grey(sample: Sample) -> Sample:
    image = sample.record.image
    return replace(sample, record=replace(sample.record, image=GreyImage(image))) if image else sample


def _place(data: Any) -> Any:
    """`data` with ~ as the home folder, if it is a path."""
    return type(data)(expanded(data, "data")) if isinstance(data, str | Path) else data


def _writable(out: str | Path | None, model: Model, data: Any) -> Path | None:
    """The output folder, known to be possible before any weight is loaded; it is made when there is something in it."""
    if out is None:
        return None
    path = path_of(out, "the output")
    if parallel.rank() == 0:
        check_writable(out, None if isinstance(model, tuple) else resolve(model))
    if isinstance(data, str | Path) and os.path.realpath(path) == os.path.realpath(expanded(data, "data")):
        raise RessaError(f"{out}: is the folder of the data, where answers would look like a split; name another")
    return path


def _matcher(model: Model, task: Task, perplexity: bool, runtime: Runtime) -> tuple[Any, Any, Machine] | None:
    """A model that matches pictures and captions, where the task is retrieval and the folder holds one."""
    if task.mode != "retrieval" or isinstance(model, tuple) or not matching.holds(model):
        return None
    if perplexity:
        raise RessaError(f"perplexity: {_name(model)} writes nothing whose likelihood could be compared; leave it out")
    return load_to_ask(model, parallel.device_of(runtime.device), runtime.dtype, matching.load)


def _loaded(model: Model, runtime: Runtime) -> tuple[Any, Any, Machine]:
    if isinstance(model, tuple):
        return *model, Machine(model[0].device, model[0].dtype, model[0].dtype)
    return load_to_ask(model, parallel.device_of(runtime.device), runtime.dtype)


def check_models(model: Any, against: Any, out: Any, versus: Any) -> None:
    """Raises RessaError for what is neither a name nor a loaded (model, processor)."""
    for name, one in (("model", model), ("against", against)):
        if isinstance(one, tuple) and len(one) != 2:
            raise RessaError(f"evaluate: {name}: a loaded one is a pair, (model, processor)")
        if not isinstance(one, tuple) and (one is not None or name == "model"):
            check_paths("evaluate", **{name: one})
    check_paths("evaluate", **{k: v for k, v in {"out": out, "versus": versus}.items() if v is not None})


def check_vocabularies(model: Model, dense: Model) -> None:
    """Refuse, from the configs alone, two models whose words cannot be compared."""
    sizes = []
    for one in (model, dense):
        config = one[0].config if isinstance(one, tuple) else read_config(one)
        sizes.append(getattr(config.get_text_config(), "vocab_size", None))
    if sizes[0] != sizes[1]:
        raise RessaError(
            f"the two models have different vocabularies ({sizes[0]} and {sizes[1]} words); compare a model with its "
            "own original"
        )


def _name(model: Model) -> str:
    return type(model[0]).__name__ if isinstance(model, tuple) else str(model)


def _named(data: Any) -> str:
    return str(data) if isinstance(data, str | Path) else type(data).__name__
