"""A recipe, stage by stage: data, prune, repair, then the same questions to the dense, pruned and repaired model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ressa.data.emoji import SPLITS
from ressa.data.records import read_records
from ressa.data.shares import shares_of
from ressa.errors import RessaError, unknown
from ressa.evaluation.settings import Evaluate
from ressa.evaluation.verb import questions
from ressa.files.folders import check_writable
from ressa.files.paths import path_of
from ressa.files.text import read_json, write_atomic
from ressa.machine import check_machine
from ressa.model.load import resolve
from ressa.model.pickles import check_pickle
from ressa.pipeline.recipe import Recipe, read_recipe, write_recipe
from ressa.pipeline.stage import Stage, adopt, carry_out
from ressa.pipeline.store import Store
from ressa.repairing.stages import Where
from ressa.repairing.trainer import check_reports
from ressa.settings import Progress, Runtime, check_instance


def run(
    recipe: Recipe, progress: Callable[[str], Progress] | None = None, store: Store | None = None
) -> dict[str, Any]:
    """Runs every stage of `recipe` that is not finished yet.

    Args:
        progress: called with a stage's name as it begins; gives that stage's progress callable.
        store: what other runs have finished, where several share stages.

    Returns:
        {"out", "models": {dense, pruned, repaired: folder or name}, "scores": {the same: scores},
         "seconds": {stage: seconds}}

    Raises:
        RessaError: anything wrong with the recipe's values, or folders that other settings made. Where it can be told
            before the first stage, it is.
    """
    check_instance(Recipe, recipe, "run")
    out, todo = out_of(recipe), stages(recipe)
    if (out / "run.json").is_file() and (out / "recipe.yaml").is_file() and read_recipe(out / "recipe.yaml") == recipe:
        adopt(todo, out)
    carry_out(todo, out, progress, check=lambda: check(recipe), store=store)
    write_atomic(out / "recipe.yaml", write_recipe(recipe))
    seconds = {s.name: read_json(s.proof).get("seconds") for s in todo if s.proof.suffix == ".json"}
    scores = {name: read_json(out / "scores" / name / "scores.json", {}) for name in models(recipe) if recipe.evaluate}
    return {"out": str(out), "models": models(recipe), "scores": scores, "seconds": seconds}


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
    out, found = out_of(recipe), models(recipe)
    common: dict[str, Any] = {"data": data_of(recipe), "runtime": recipe.runtime or Runtime()}
    common |= {"sources": (recipe.model, recipe.data)}
    todo = [Stage("data", "data", out / "data", seed=recipe.seed)] if recipe.data == "emoji" else []
    if recipe.prune:
        todo.append(
            Stage("prune", "prune", out / "pruned", recipe.model, settings=recipe.prune, after=("data",), **common)
        )
    if recipe.repair:
        more: dict[str, Any] = {"dense": recipe.model, "settings": recipe.repair, "after": ("data", "prune")}
        todo.append(Stage("repair", "repair", out / "repaired", str(out / "pruned"), **more, **common))
    for name, model in found.items() if recipe.evaluate else ():
        made_by = {"pruned": ("prune",), "repaired": ("repair",)}.get(name, ())
        more = {"dense": None if name == "dense" else recipe.model, "settings": recipe.evaluate}
        more |= {"after": ("data", *made_by)}
        todo.append(Stage(f"evaluate {name}", "evaluate", out / "scores" / name, model, **more, **common))
    return todo


def check(recipe: Recipe) -> None:
    """What would be wrong at a later stage is refused before the first."""
    if recipe.repair and not recipe.prune:
        raise RessaError("the recipe repairs what it does not prune: add a prune section")
    check_pickle(resolve(recipe.model))
    check_writable(out_of(recipe) / "scores" / "repaired", resolve(recipe.model))
    runtime = recipe.runtime or Runtime()
    if recipe.repair:
        Where.of(recipe.repair, runtime)
        check_reports(recipe.repair.report_to)
    check_machine(**asdict(runtime))
    splits = [recipe.prune.split] if recipe.prune else []
    if recipe.evaluate:
        splits += _check_questions(recipe, recipe.evaluate)
    names = [(one, False) for joined in splits for one in joined.split("+")]
    if recipe.repair:
        names += [(one, recipe.repair.labels != "data") for one in shares_of(recipe.repair.split)]
    for split, unlabelled in dict.fromkeys(names):
        if recipe.data != "emoji":
            read_records(recipe.data, split, unlabelled=unlabelled)
        elif split.removesuffix("_captions") not in SPLITS:
            raise unknown("split", split, SPLITS)


def _check_questions(recipe: Recipe, settings: Evaluate) -> list[str]:
    """Which splits of scenes that are still to be drawn are asked; what is there already is read as it will be."""
    if recipe.data != "emoji":
        questions(recipe.data, settings)
        return []
    if settings.task != "folder":
        raise RessaError(f"the emoji scenes have no files of {settings.task}: name its folder as `data`")
    return [settings.split or "test"]
