"""A recipe, stage by stage: data, prune, repair, then the same questions to the dense, pruned and repaired model.

A stage's key is a hash of its settings and of the stages before it. A finished stage whose key is unchanged is not run
again; a folder made with other settings is never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ressa.data.emoji import write as write_emoji
from ressa.errors import RessaError
from ressa.evaluate.score import evaluate, write_atomic
from ressa.model.load import resolve
from ressa.prune import prune
from ressa.recipe import Recipe, write_recipe
from ressa.repair.train import repair

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Stage:
    """One step of a run: what it makes, from which settings, and the call that makes it."""

    name: str
    folder: Path
    settings: dict[str, Any]
    make: Callable[[Progress | None], Any]


def run(recipe: Recipe, progress: Callable[[str], Progress] | None = None) -> dict[str, Any]:
    """Runs every stage of `recipe` that is not finished yet.

    Args:
        progress: called with a stage's name as it begins; gives that stage's progress callable.

    Returns:
        {"out", "models": {dense, pruned, repaired: folder or name}, "scores": {the same: scores}, "seconds": {stage: s}}

    Raises:
        RessaError: anything wrong with the recipe's values, or a stage's folder that other settings made.
    """
    out = Path(recipe.out)
    resolve(recipe.model)
    if recipe.repair and not recipe.prune:
        raise RessaError("the recipe repairs what it does not prune: add a prune section")
    ledger = _read(out / "run.json")
    key = ""
    plan = stages(recipe)
    for stage in plan:
        key = hashlib.sha256(json.dumps([key, stage.name, stage.settings], sort_keys=True).encode()).hexdigest()[:16]
        done = ledger.get(stage.name)
        if done and done["key"] == key and stage.folder.exists():
            continue
        if done and stage.folder.exists():
            raise RessaError(f"{stage.folder}: was made with other settings; name another `out`, or delete this folder")
        started = time.perf_counter()
        stage.make(progress(stage.name) if progress else None)
        ledger[stage.name] = {"key": key, "seconds": round(time.perf_counter() - started, 2)}
        write_atomic(out / "run.json", json.dumps(ledger, indent=2) + "\n")
    write_atomic(out / "recipe.yaml", write_recipe(recipe))
    return {
        "out": str(out),
        "models": models(recipe),
        "scores": {name: _read(out / "scores" / name / "scores.json") for name in models(recipe) if recipe.evaluate},
        "seconds": {stage.name: ledger[stage.name]["seconds"] for stage in plan},
    }


def models(recipe: Recipe) -> dict[str, str]:
    """The models of a run, dense first, by name."""
    out = Path(recipe.out)
    made = {"pruned": recipe.prune, "repaired": recipe.repair}
    return {"dense": recipe.model} | {name: str(out / name) for name, section in made.items() if section}


def data_of(recipe: Recipe) -> str:
    """The data folder of a run."""
    return str(Path(recipe.out) / "data") if recipe.data == "emoji" else recipe.data


def stages(recipe: Recipe) -> list[Stage]:
    """What a recipe asks for, in order."""
    out, data = Path(recipe.out), data_of(recipe)
    common = {"model": recipe.model, "data": recipe.data, "seed": recipe.seed}
    todo = []
    if recipe.data == "emoji":
        todo.append(
            Stage(
                "data", out / "data", {"seed": recipe.seed}, lambda p: write_emoji(data, seed=recipe.seed, progress=p)
            )
        )
    if recipe.prune:
        pruning = asdict(recipe.prune)
        todo.append(
            Stage(
                "prune",
                out / "pruned",
                common | pruning,
                lambda p: prune(recipe.model, out / "pruned", data=data, seed=recipe.seed, progress=p, **pruning),
            )
        )
    if recipe.repair:
        todo.append(_repair_stage(recipe, data, common))
    if recipe.evaluate:
        todo += [_score_stage(recipe, data, name, model) for name, model in models(recipe).items()]
    return todo


def _repair_stage(recipe: Recipe, data: str, common: dict[str, Any]) -> Stage:
    out, training = Path(recipe.out), asdict(recipe.repair)  # type: ignore[arg-type]

    def make(progress: Progress | None) -> None:
        repair(
            out / "pruned",
            out / "repaired",
            teacher=recipe.model,
            data=data,
            seed=recipe.seed,
            progress=progress,
            **training,
        )

    return Stage("repair", out / "repaired", common | training, make)


def _score_stage(recipe: Recipe, data: str, name: str, model: str) -> Stage:
    asking, folder = asdict(recipe.evaluate), Path(recipe.out) / "scores" / name  # type: ignore[arg-type]
    against = recipe.model if name != "dense" else None

    def make(progress: Progress | None) -> None:
        evaluate(model, data=data, against=against, out=folder, progress=progress, **asking)

    return Stage(f"evaluate {name}", folder, asking, make)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
