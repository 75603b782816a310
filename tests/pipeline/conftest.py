"""Fixtures: a finished run, and the file of a small study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ressa.evaluation.settings import Evaluate
from ressa.pipeline.recipe import Recipe
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair

GRID = {"prune.sparsity": ["50%", "2:4"]}


@pytest.fixture(scope="session")
def finished(llava_folder, tiny_data, tmp_path_factory) -> tuple[Recipe, dict]:
    """A finished run. Tests must not write into its folder."""
    from ressa.pipeline.run import run

    recipe = Recipe(
        model=str(llava_folder),
        data=str(tiny_data),
        out=str(tmp_path_factory.mktemp("run") / "out"),
        prune=Prune(samples=4),
        repair=Repair(steps=2, batch_size=4),
        evaluate=Evaluate(limit=6, max_new_tokens=2),
    )
    return recipe, run(recipe)


@pytest.fixture
def told(llava_folder, tiny_data, tmp_path) -> dict[str, Any]:
    """What a small study's file says."""
    recipe = {
        "model": str(llava_folder),
        "data": str(tiny_data),
        "prune": {"method": "magnitude"},
        "evaluate": {"limit": 4, "max_new_tokens": 2},
    }
    return {"recipe": recipe, "out": str(tmp_path / "out"), "seeds": [0, 1], "grid": GRID}


@pytest.fixture
def file(told, tmp_path):
    """Writes what a study's file says, with changes; gives its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(told | changes, sort_keys=False), encoding="utf-8")
        return path

    return write
