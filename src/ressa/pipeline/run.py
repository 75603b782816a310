"""A recipe, stage by stage: data, prune, repair, then the same questions to the dense, pruned and repaired model.

A stage's key is a hash of its settings and of the keys of the stages it builds on. A finished stage whose key is
unchanged is not run again; a folder made with other settings is never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ressa.data.emoji import SPLITS
from ressa.data.emoji import write as write_emoji
from ressa.data.records import read_records
from ressa.errors import RessaError, unknown
from ressa.evaluation.verb import evaluate, questions, task_of
from ressa.files.folders import check_output, check_writable, tidy_parents
from ressa.files.paths import path_of
from ressa.files.text import write_atomic
from ressa.limits import check_instance
from ressa.machine import check_machine
from ressa.model.load import resolve
from ressa.model.pickles import check_pickle
from ressa.pipeline.recipe import checked, write_recipe
from ressa.pruning.verb import prune
from ressa.repairing.settings import Settings
from ressa.repairing.stages import Where
from ressa.repairing.trainer import check_reports
from ressa.repairing.verb import dtype_of, repair
from ressa.settings import Evaluate, Prune, Recipe, Repair, Runtime

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Stage:
    """One step of a run: the stages it builds on, its settings, and the call that makes its folder.

    `proof` is the file of the folder that is written last: where it stands, the stage is finished. A `fresh` one is
    written to a new folder only; others go on in theirs.
    """

    name: str
    proof: Path
    after: tuple[str, ...]
    settings: dict[str, Any]
    make: Callable[[Progress | None], Any]
    fresh: bool = False

    @property
    def folder(self) -> Path:
        return self.proof.parent


def run(recipe: Recipe, progress: Callable[[str], Progress] | None = None) -> dict[str, Any]:
    """Runs every stage of `recipe` that is not finished yet.

    Args:
        progress: called with a stage's name as it begins; gives that stage's progress callable.

    Returns:
        {"out", "models": {dense, pruned, repaired: folder or name}, "scores": {the same: scores},
         "seconds": {stage: seconds}}

    Raises:
        RessaError: anything wrong with the recipe's values, or folders that other settings made. Where it can be told
            before the first stage, it is.
    """
    check_instance(Recipe, recipe, "run")
    recipe = checked(recipe, "recipe")
    out, plan = out_of(recipe), stages(recipe)
    seconds = carry_out(plan, out, progress, check=lambda: _check(recipe))
    write_atomic(out / "recipe.yaml", write_recipe(recipe))
    return {
        "out": str(out),
        "models": models(recipe),
        "scores": {name: _read(out / "scores" / name / "scores.json") for name in models(recipe) if recipe.evaluate},
        "seconds": seconds,
    }


def carry_out(
    plan: list[Stage],
    out: Path,
    progress: Callable[[str], Progress] | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Makes every stage of `plan` that is not finished yet, after `check`; returns {stage: seconds it took}.

    Raises:
        RessaError: folders that other settings made or that stand in the way, before anything is done.
    """
    ledger, keys = _ledger(out, plan), _keys(plan)
    changed = [stage for stage in plan if ledger.get(stage.name, {}).get("key") not in (None, keys[stage.name])]
    if in_the_way := [str(stage.folder) for stage in changed if stage.folder.exists()]:
        raise RessaError(f"{', '.join(in_the_way)}: made with other settings; name another `out`, or delete this first")
    todo = [stage for stage in plan if stage.name not in ledger or stage in changed or not stage.proof.is_file()]
    for stage in todo:
        if stage.fresh:
            check_output(stage.folder)
    if todo:
        check()
    for stage in todo:
        started = time.perf_counter()
        with _begun(stage, keys[stage.name], ledger, out):
            stage.make(progress(stage.name) if progress else None)
        ledger[stage.name] = {"key": keys[stage.name], "seconds": round(time.perf_counter() - started, 2)}
        _write(ledger, out)
    if ledger != _read(out / "run.json"):
        _write(ledger, out)  # all that was missing was a note
    return {stage.name: ledger[stage.name]["seconds"] for stage in plan}


def _ledger(out: Path, plan: list[Stage]) -> dict[str, Any]:
    """{stage: {"key", "seconds"}} of finished stages. A stage that a kill kept from being written down is finished if
    its proof stands, which is as old as it took; one that was only begun is left out."""
    ledger = _read(out / "run.json")
    for stage in plan:
        begun = ledger.get(stage.name, {}).get("begun")
        if begun is not None and stage.proof.is_file():
            seconds = round(max(0.0, stage.proof.stat().st_mtime - begun), 2)
            ledger[stage.name] = {"key": ledger[stage.name]["key"], "seconds": seconds}
        elif begun is not None:
            del ledger[stage.name]
    return ledger


@contextmanager
def _begun(stage: Stage, key: str, ledger: dict[str, Any], out: Path) -> Iterator[None]:
    """Until the stage is written down as finished, the ledger says that it was begun, and when: so that a kill in
    between loses nothing. A proof that stands before is not this stage's, and a stage that fails leaves no note."""
    with tidy_parents(out / "run.json"):
        if stage.proof.is_file():
            yield
            return
        _write(ledger | {stage.name: {"key": key, "begun": time.time()}}, out)
        try:
            yield
        except BaseException:
            if not stage.proof.is_file():
                _write(ledger, out) if ledger else (out / "run.json").unlink(missing_ok=True)
            raise


def _write(ledger: dict[str, Any], out: Path) -> None:
    write_atomic(out / "run.json", json.dumps(ledger, indent=2) + "\n")


def models(recipe: Recipe) -> dict[str, str]:
    """The models of a run, dense first, by name."""
    out = out_of(recipe)
    made = {"pruned": recipe.prune, "repaired": recipe.repair}
    return {"dense": recipe.model} | {name: str(out / name) for name, section in made.items() if section}


def out_of(recipe: Recipe) -> Path:
    """The folder of a run. Raises RessaError as `path_of`."""
    return path_of(recipe.out, "out")


def data_of(recipe: Recipe) -> str:
    """The data folder of a run."""
    return str(out_of(recipe) / "data") if recipe.data == "emoji" else recipe.data


def stages(recipe: Recipe) -> list[Stage]:
    """What a recipe asks for, in order."""
    todo = [_data_stage(recipe)] if recipe.data == "emoji" else []
    if recipe.prune:
        todo.append(_prune_stage(recipe, recipe.prune))
    if recipe.repair:
        todo.append(_repair_stage(recipe, recipe.repair))
    if recipe.evaluate:
        todo += [_score_stage(recipe, recipe.evaluate, name, model) for name, model in models(recipe).items()]
    return todo


def _data_stage(recipe: Recipe) -> Stage:
    def make(progress: Progress | None) -> None:
        write_emoji(data_of(recipe), seed=recipe.seed, progress=progress)

    return Stage("data", out_of(recipe) / "data" / "README.txt", (), {"seed": recipe.seed}, make, fresh=True)


def dtype_key(runtime: Runtime | None) -> dict[str, str]:
    """What of it belongs to a stage's key: the device does not, nor what `auto` becomes on one machine or another."""
    return {"dtype": runtime.dtype} if runtime and runtime.dtype != "auto" else {}


def _where(recipe: Recipe) -> dict[str, Any]:
    return asdict(recipe.runtime or Runtime())


def _prune_stage(recipe: Recipe, section: Prune) -> Stage:
    out = out_of(recipe) / "pruned"

    def make(progress: Progress | None) -> None:
        source: dict[str, Any] = {"data": data_of(recipe), "seed": recipe.seed, "progress": progress}
        prune(recipe.model, out, **source, **_where(recipe), **asdict(section))

    return Stage("prune", out / "ressa.json", ("data",), _common(recipe) | asdict(section), make, fresh=True)


def _repair_stage(recipe: Recipe, section: Repair) -> Stage:
    pruned, out = out_of(recipe) / "pruned", out_of(recipe) / "repaired"

    def make(progress: Progress | None) -> None:
        source: dict[str, Any] = {"teacher": recipe.model, "data": data_of(recipe), "seed": recipe.seed}
        repair(pruned, out, progress=progress, **source, **_where(recipe), **asdict(section))

    return Stage("repair", out / "ressa.json", ("data", "prune"), _common(recipe) | asdict(section), make, fresh=True)


def _score_stage(recipe: Recipe, section: Evaluate, name: str, model: str) -> Stage:
    folder = out_of(recipe) / "scores" / name
    against = recipe.model if name != "dense" else None

    def make(progress: Progress | None) -> None:
        source: dict[str, Any] = {"data": data_of(recipe), "against": against, "out": folder, "progress": progress}
        evaluate(model, **source, **_where(recipe), **asdict(section))

    made_by = {"pruned": ("prune",), "repaired": ("repair",)}.get(name, ())
    settings = {"model": recipe.model, "data": recipe.data} | dtype_key(recipe.runtime) | asdict(section)
    return Stage(f"evaluate {name}", folder / "scores.json", ("data", *made_by), settings, make)


def _common(recipe: Recipe) -> dict[str, Any]:
    return {"model": recipe.model, "data": recipe.data, "seed": recipe.seed} | dtype_key(recipe.runtime)


def _keys(plan: list[Stage]) -> dict[str, str]:
    """The key of every stage; a recipe without a data stage has no key for it either."""
    keys: dict[str, str] = {}
    for stage in plan:
        told = [stage.name, stage.settings, [keys.get(name) for name in stage.after]]
        keys[stage.name] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return keys


def _check(recipe: Recipe) -> None:
    """What would be wrong at a later stage is refused before the first."""
    if recipe.repair and not recipe.prune:
        raise RessaError("the recipe repairs what it does not prune: add a prune section")
    check_pickle(resolve(recipe.model))
    check_writable(out_of(recipe) / "scores" / "repaired", resolve(recipe.model))
    runtime = recipe.runtime or Runtime()
    if recipe.repair:
        Where(runtime.device, dtype_of(runtime.dtype, recipe.repair.bf16))
        Settings.complete_from(asdict(recipe.repair) | {"seed": recipe.seed})
        check_reports(recipe.repair.report_to)
    check_machine(runtime.device, runtime.dtype)
    splits = [section.split for section in (recipe.prune, recipe.repair) if section]
    if recipe.evaluate:
        splits += _check_questions(recipe, recipe.evaluate)
    for split in dict.fromkeys(splits):
        if recipe.data != "emoji":
            read_records(recipe.data, split)
        elif split.removesuffix("_captions") not in SPLITS:
            raise unknown("split", split, SPLITS)


def _check_questions(recipe: Recipe, section: Evaluate) -> list[str]:
    """Which splits of scenes that are still to be drawn are asked; what is there already is read as it will be."""
    if recipe.data != "emoji":
        questions(recipe.data, **asdict(section))
        return []
    if section.task != "folder":
        raise RessaError(f"the emoji scenes have no files of {section.task}: name its folder as `data`")
    task_of(asdict(section))
    return [section.split or "test"]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise RessaError(f"{path}: is not JSON any more; delete it or name another `out`") from None
