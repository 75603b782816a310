"""compare: several pruning methods on one model and one calibration set, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.evaluation.settings import Evaluate
from ressa.evaluation.verb import questions
from ressa.files.folders import check_writable
from ressa.files.paths import path_of
from ressa.files.text import read_json, write_atomic
from ressa.machine import check_machine
from ressa.model.folder import read_manifest
from ressa.model.load import resolve
from ressa.model.pickles import check_pickle
from ressa.pipeline.stage import Stage, carry_out
from ressa.pruning.settings import Prune
from ressa.settings import Progress, Runtime, check_instance, check_paths


def compare(
    model: str | Path,
    out: str | Path,
    *,
    data: str | Path,
    methods: Sequence[str],
    settings: Callable[..., Prune],
    asked: Evaluate | None = None,
    runtime: Runtime,
    progress: Callable[[str], Progress] | None = None,
) -> dict[str, Any]:
    """Prunes `model` by each of `methods`, all other settings equal, and measures each result against the dense model.

    Each method gets a folder in `out` with its model and its scores; a finished one is not made again. compare.json
    holds what is returned.

    Args:
        data: what `read_records` reads: calibration records in one split, held-out records in another.
        methods: names of pruning methods.
        settings: makes the settings of `prune`, given a method: `functools.partial(Prune, sparsity="50%")`.
        asked: of `evaluate`, on records of your own.
        runtime: where it is computed, and in what.
        progress: called with a stage's name as it begins; gives that stage's progress callable.

    Returns:
        {"model", "sparsity", "dense": exact match, "methods": {name: {"exact_match", "kl" (of answers, nats per token),
        "blocks": {block: relative squared error of its output on held-out records}, "seconds", "peak_memory_bytes"}}}

    Raises:
        RessaError: an unknown method, and what `prune` and `evaluate` refuse.
    """
    asked = asked or Evaluate()
    check_paths("compare", model=model, out=out)
    check_instance(Evaluate, asked, "compare")
    check_machine(**asdict(runtime))
    folder = path_of(out, "the output")
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise RessaError("name at least one method, and each of them once")
    if asked.task != "folder":
        raise RessaError(f"compare scores exact match on records of your own: leave task '{asked.task}' out")
    each = {method: settings(method=method) for method in methods}
    first = each[methods[0]]

    def check() -> None:
        check_pickle(resolve(model))
        check_writable(folder / "scores" / max(methods, key=len), resolve(model))
        read_records(data, first.split)
        questions(data, asked)

    carry_out(stages(folder, str(model), str(data), each, asked, runtime), folder, progress, check)
    result = {
        "model": str(model),
        "sparsity": first.sparsity,
        "dense": read_json(folder / "scores" / "dense" / "scores.json")["exact_match"],
        "methods": {method: _result(method, folder) for method in methods},
    }
    write_atomic(folder / "compare.json", json.dumps(result, indent=2) + "\n")
    return result


def stages(out: Path, model: str, data: str, each: dict[str, Prune], asked: Evaluate, runtime: Runtime) -> list[Stage]:
    """The dense model's scores; then of each method its model, scores and block errors."""
    common: dict[str, Any] = {"data": data, "runtime": runtime, "sources": (model, data)}
    todo = [Stage("evaluate dense", "evaluate", out / "scores" / "dense", model, settings=asked, **common)]
    for method, settings in each.items():
        pruned, scores = out / method, out / "scores" / method
        todo.append(Stage(f"prune {method}", "prune", pruned, model, settings=settings, **common))
        more: dict[str, Any] = {"dense": model, "settings": asked, "after": (f"prune {method}",)} | common
        todo.append(Stage(f"evaluate {method}", "evaluate", scores, str(pruned), **more))
        todo.append(Stage(f"blocks {method}", "blocks", scores, str(pruned), seed=settings.seed, **more))
    return todo


def _result(method: str, out: Path) -> dict[str, Any]:
    scores, manifest = read_json(out / "scores" / method / "scores.json"), read_manifest(out / method) or {}
    measured = {key: scores[key] for key in ("exact_match", "kl")}
    cost = {key: manifest[key] for key in ("seconds", "peak_memory_bytes")}
    return measured | {"blocks": read_json(out / "scores" / method / "blocks.json")} | cost
