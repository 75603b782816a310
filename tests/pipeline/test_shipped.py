"""What ressa carries runs: each recipe and study on a tiny model, and as it is on the models of the paper."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoConfig, InstructBlipConfig

import ressa
from ressa.inspection.plan import plan
from ressa.inspection.settings import Plan
from ressa.model.load import auto_class
from ressa.model.structure import structure
from ressa.patterns import parse
from ressa.pipeline import cells as engine
from ressa.pipeline.recipe import Recipe, read_recipe, read_yaml
from ressa.pipeline.results import results
from ressa.pipeline.run import run
from ressa.pipeline.study import read_study
from ressa.pruning.request import Request

CONFIGS = Path(__file__).parents[1] / "configs"

ROOM = Path(ressa.__file__).parent
RECIPES, STUDIES = sorted((ROOM / "recipes").glob("*.yaml")), sorted((ROOM / "studies").glob("*.yaml"))
SCRIPTS = ("wanda", "sparsegpt", "dsnot", "ecoflap-first", "ecoflap-zeroth", "magnitude", "random", "train", "evaluate")
FEW: dict[str, Any] = {"prune.samples": 4, "repair.samples": 2, "repair.steps": 1, "repair.batch_size": 2}
FEW |= {"evaluate.limit": 2, "evaluate.max_new_tokens": 2}
MOST = 3  # cells of a study that are made here; all are checked


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory) -> Path:
    """The splits that the emoji scenes have."""
    folder = tmp_path_factory.mktemp("splits")
    shutil.copytree(tiny_data / "images", folder / "images")
    captions = (tiny_data / "captions.jsonl").read_text(encoding="utf-8")
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text((tiny_data / f"{split}.jsonl").read_text(encoding="utf-8"))
        (folder / f"{split}_captions.jsonl").write_text(captions)
    return folder


def small(values: dict[str, Any]) -> None:
    """A recipe's values with few of everything, in place."""
    for key, value in FEW.items():
        section, _, name = key.partition(".")
        if section in values:
            values[section][name] = value


def test_there_is_a_recipe_for_every_script_of_the_original():
    assert {path.stem for path in RECIPES} >= set(SCRIPTS)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_runs_on_a_tiny_model(path, llava_folder, data, tmp_path):
    values = read_yaml(path, "the recipe") | {"model": str(llava_folder), "data": str(data)}
    small(values)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values | {"out": str(tmp_path / "out")}))
    told = run(read_recipe(tmp_path / "recipe.yaml"))
    made = {"prune": "pruned", "repair": "repaired"}
    assert [*told["scores"]] == ["dense", *(model for verb, model in made.items() if verb in values)]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_cells_of_a_shipped_study_run_on_a_tiny_model(path, llava_folder, data, tmp_path):
    values = read_yaml(path, "the study") | {"seeds": [0], "out": str(tmp_path / "out")}
    values["recipe"]["data"] = str(data)
    values["grid"]["model"] = [str(llava_folder)]
    small(values["recipe"])
    for changes in values.get("variants", {}).values():
        changes |= {key: FEW[key] for key in changes if key in FEW}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    study = read_study(tmp_path / "study.yaml")
    engine.check_study(study)
    study = replace(
        study, cells=tuple({cell.name: cell for cell in study.cells[:: -(-len(study.cells) // MOST)]}.values())
    )
    engine.make(study, study.cells, lambda *_: None, lambda: lambda stage: lambda *_: None)
    assert [row["error"] for row in results(study) if row["error"]] == []
    engine.report_failures(study)


def test_no_figure_of_the_studies_lacks_a_cell():
    cells = {path.stem: read_study(path).cells for path in STUDIES}
    zeros = {(c.columns["line"], c.recipe.prune.vision, c.recipe.prune.language) for c in cells["allocation"]}
    assert {("sum 100%", "50%", "50%"), ("sum 120%", "60%", "60%"), ("total 50%", "50%", None)} <= zeros
    patterns = {c.recipe.prune.sparsity for c in cells["modalities"]}
    assert patterns == {"50%", "4:8", "2:4", "60%", "70%"}
    assert {c.recipe.prune.sparsity for c in cells["performance"]} == {"50%", "4:8", "2:4", "70%"}
    assert all(c.recipe.repair for c in cells["performance"])
    assert {c.recipe.repair.split for c in cells["transfer"]} == {"train", "train_captions", "train+train_captions"}
    assert {c.recipe.repair.complete.rank for c in cells["ablation"]} == {4, 8, 16, 32, 64}


# ---- on the models of the paper --------------------------------------------------------------------------------------


def flan_t5() -> Any:
    """InstructBLIP-FlanT5-XL: vision and language of BLIP-2 FlanT5-XL, the Q-Former of the other InstructBLIP."""
    told = {name: json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("blip2-flan-t5-xl", VICUNA)}
    parts = {key: told["blip2-flan-t5-xl"][key] for key in ("vision_config", "text_config")}
    return InstructBlipConfig(**parts, qformer_config=told[VICUNA]["qformer_config"], num_query_tokens=32)


VICUNA = "instructblip-vicuna-7b"
PAPER = ("blip2-flan-t5-xl", VICUNA, "instructblip-flan-t5-xl")


@pytest.fixture(scope="module", params=PAPER)
def paper(request, tmp_path_factory) -> tuple[Path, nn.Module]:
    """A folder with a real config and no weights, and the model that it describes."""
    known = CONFIGS / f"{request.param}.json"
    config = AutoConfig.from_pretrained(known) if known.is_file() else flan_t5()
    folder = tmp_path_factory.mktemp(request.param)
    config.save_pretrained(folder)
    with torch.device("meta"):
        return folder, auto_class(config).from_config(config)


def recipes(folder: Path) -> dict[str, Recipe]:
    """Every recipe that ressa ships and one of each pattern of its studies, with the model's line changed."""
    found = {path.stem: read_recipe(path) for path in RECIPES}
    for path in STUDIES:
        found |= {str(cell.recipe.prune): cell.recipe for cell in read_study(path).cells if cell.recipe.prune}
    return {name: replace(recipe, model=str(folder), data="cc3m/") for name, recipe in found.items()}


def test_every_pattern_of_what_is_shipped_fits_the_models_of_the_paper(paper):
    folder, net = paper
    blocks = structure(net).blocks()
    for name, recipe in recipes(folder).items():
        for block in blocks if recipe.prune else ():
            pattern = parse(Request(recipe.prune).sparsity_of(block.part))
            for linear, module in block.linears.items():
                pattern.check(module.weight.shape, f"{name}: {linear}")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_a_shipped_recipe_takes_on_the_models_of_the_paper_can_be_planned(path, paper):
    folder, _ = paper
    recipe = read_recipe(path)
    if recipe.prune:
        settings = Plan(samples=recipe.prune.samples, batch_size=recipe.prune.batch_size)
        told = plan(folder, recipe.prune.sparsity, settings=settings)
        assert f"prune: {recipe.prune.method}" in told["steps"]
        assert told["parts"]["vision"]["prunable"] == pytest.approx(984.0e6, rel=1e-3)
