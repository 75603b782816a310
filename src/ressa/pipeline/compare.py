"""compare: several pruning methods on one model and one calibration set, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ressa.calibration.samples import samples as draw
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.evaluation.blocks import block_errors
from ressa.evaluation.verb import evaluate, questions
from ressa.files.paths import path_of
from ressa.files.text import write_atomic
from ressa.limits import check as check_values
from ressa.limits import check_instance, check_paths
from ressa.machine import check_machine
from ressa.model.folder import check_writable, read_manifest
from ressa.model.load import load_to_ask, resolve
from ressa.model.pickles import check_pickle
from ressa.pipeline.recipe import checked
from ressa.pipeline.run import Progress, Stage, carry_out, dtype_key
from ressa.pruning.verb import prune
from ressa.settings import Evaluate, Prune, Runtime

HELD_OUT = 32  # records whose block outputs are compared


def compare(
    model: str | Path,
    out: str | Path,
    *,
    data: str | Path,
    methods: Sequence[str],
    settings: Prune | None = None,
    asked: Evaluate | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    progress: Callable[[str], Progress] | None = None,
) -> dict[str, Any]:
    """Prunes `model` by each of `methods`, all other settings equal, and measures each result against the dense model.

    Each method gets a folder in `out` with its model and its scores; a finished one is not made again. compare.json
    holds what is returned.

    Args:
        data: what `read_records` reads: calibration records in one split, held-out records in another.
        methods: names of pruning methods.
        settings: of `prune`, except for its method.
        asked: of `evaluate`.
        runtime: where it is computed, and in what.
        progress: called with a stage's name as it begins; gives that stage's progress callable.

    Returns:
        {"model", "sparsity", "dense": exact match, "methods": {name: {"exact_match", "kl" (of answers, nats per token),
        "blocks": {block: relative squared error of its output on held-out records}, "seconds", "peak_memory_bytes"}}}

    Raises:
        RessaError: an unknown method, and what `prune` and `evaluate` refuse.
    """
    settings, asked, runtime = settings or Prune(), asked or Evaluate(), runtime or Runtime()
    check_paths("compare", model=model, out=out)
    check_instance(Prune, settings, "compare")
    check_instance(Evaluate, asked, "compare")
    check_instance(Runtime, runtime, "compare")
    check_machine(runtime.device, runtime.dtype)
    asked, out = checked(asked, "compare"), path_of(out, "the output")
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise RessaError("name at least one method, and each of them once")
    each = {method: checked(replace(settings, method=method), "compare") for method in methods}
    settings = each[methods[0]]
    check_values(Prune, {"seed": seed}, "compare")
    if asked.task != "folder":
        raise RessaError(f"compare scores exact match on records of your own: leave task '{asked.task}' out")

    def check() -> None:
        check_pickle(resolve(model))
        check_writable(out / "scores" / max(methods, key=len), resolve(model))
        read_records(data, settings.split)
        questions(data, **asdict(asked))

    common = {"model": str(model), "data": str(data), "seed": seed} | dtype_key(runtime)
    where: dict[str, Any] = asdict(runtime)
    dense = _scores("dense", str(model), out, common, asked, None, where)
    plan = [dense]
    for method, section in each.items():
        plan += [
            _pruned(out / method, section, common, where),
            _scores(method, str(out / method), out, common, asked, str(model), where),
            _blocks(method, out, common, asked, where),
        ]
    carry_out(plan, out, progress, check)
    told = {
        "model": str(model),
        "sparsity": settings.sparsity,
        "dense": _read(dense.proof)["exact_match"],
        "methods": {method: _result(method, out) for method in methods},
    }
    write_atomic(out / "compare.json", json.dumps(told, indent=2) + "\n")
    return told


def _pruned(folder: Path, section: Prune, common: dict[str, Any], where: dict[str, Any]) -> Stage:
    def make(progress: Progress | None) -> None:
        source: dict[str, Any] = {"data": common["data"], "seed": common["seed"]}
        prune(common["model"], folder, progress=progress, **source, **where, **asdict(section))

    return Stage(f"prune {section.method}", folder / "ressa.json", (), common | asdict(section), make, fresh=True)


def _scores(
    name: str,
    model: str,
    out: Path,
    common: dict[str, Any],
    asked: Evaluate,
    against: str | None,
    where: dict[str, Any],
) -> Stage:
    folder = out / "scores" / name

    def make(progress: Progress | None) -> None:
        source: dict[str, Any] = {"data": common["data"], "against": against, "out": folder}
        evaluate(model, progress=progress, **source, **where, **asdict(asked))

    after = () if against is None else (f"prune {name}",)
    return Stage(f"evaluate {name}", folder / "scores.json", after, common | asdict(asked), make)


def _blocks(method: str, out: Path, common: dict[str, Any], asked: Evaluate, where: dict[str, Any]) -> Stage:
    proof = out / "scores" / method / "blocks.json"

    def make(progress: Progress | None) -> None:
        dense, processor, _ = load_to_ask(common["model"], **where)
        pruned, _, _ = load_to_ask(out / method, **where)
        held_out = read_records(common["data"], asked.split or "test")
        batches = draw(held_out, processor, dense.config, HELD_OUT, batch_size=8, seed=common["seed"])
        write_atomic(proof, json.dumps(block_errors(pruned, dense, batches), indent=2) + "\n")

    return Stage(f"blocks {method}", proof, (f"prune {method}",), common | {"split": asked.split or "test"}, make)


def _result(method: str, out: Path) -> dict[str, Any]:
    scores, manifest = _read(out / "scores" / method / "scores.json"), read_manifest(out / method) or {}
    measured = {key: scores[key] for key in ("exact_match", "kl")}
    cost = {key: manifest[key] for key in ("seconds", "peak_memory_bytes")}
    return measured | {"blocks": _read(out / "scores" / method / "blocks.json")} | cost


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
