"""A study's file, and what is made of it: every cell, what cells have in common once, and one table of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_study import make, table

import ressa
from ressa.errors import RessaError
from ressa.pipeline import cells as engine
from ressa.pipeline.lines import points
from ressa.pipeline.recipe import read_recipe
from ressa.pipeline.results import results
from ressa.pipeline.run import run
from ressa.pipeline.spread import shipped
from ressa.pipeline.study import Study, read_study

SHIPPED = sorted((Path(ressa.__file__).parent / "studies").glob("*.yaml"))


def made(study: Study) -> dict[str, int]:
    """When each model and score was written."""
    there = [*study.out.glob("cells/*/*/ressa.json"), *study.out.glob("cells/*/scores/*/scores.json")]
    return {str(path): path.stat().st_mtime_ns for path in there}


# ---- what a file may say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_study_loads_and_opens_with_its_command(path):
    study = read_study(path)
    assert path.read_text(encoding="utf-8").startswith(f"# ressa study {path.stem}\n")
    assert len({cell.name for cell in study.cells}) == len(study.cells)
    assert {cell.recipe.model for cell in study.cells} == {"demo", "emoji-instructblip"}
    assert {cell.recipe.seed for cell in study.cells} == {0, 1, 2}
    assert shipped(path.stem) == path


def test_there_are_as_many_cells_as_the_issue_asks_figures_of():
    assert [path.stem for path in SHIPPED] == ["ablation", "allocation", "modalities", "performance", "transfer"]


def test_cells_are_every_combination_with_a_name_that_can_be_read(file):
    lines = [{"keys": ["prune.vision", "prune.language"], "sum": "100%", "from": "20%", "to": "80%", "points": 3}]
    variants = {"as it is": {}, "bare": {"evaluate": None}}
    study = read_study(file(grid={"prune.samples": [4, 8]}, lines=lines, variants=variants))
    assert len(study.cells) == 2 * 2 * 2 * 3
    first = study.cells[0]
    assert first.name.startswith("seed-0_as-it-is_samples-4_sum-100_vision-20_language-80_")
    assert first.columns == {
        "seed": 0,
        "variant": "as it is",
        "prune.samples": 4,
        "line": "sum 100%",
        "prune.vision": "20%",
        "prune.language": "80%",
    }
    assert (first.recipe.prune.vision, first.recipe.prune.language) == ("20%", "80%")
    assert {cell.recipe.evaluate is None for cell in study.cells if "bare" in cell.name} == {True}
    assert {tuple(cell.columns) for cell in study.cells} == {study.columns}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gird": {}}, "unknown key 'gird': did you mean 'grid'?"),
        ({"grid": {"prune.sparsty": [1]}}, "unknown key 'sparsty': did you mean 'sparsity'?"),
        ({"grid": {"prun.sparsity": ["50%"]}}, "unknown key 'prun': did you mean 'prune'?"),
        ({"grid": {"prune.sparsity": ["50%", "5:4"]}}, "cell seed-0_sparsity-5-4"),
        ({"grid": {"prune.sparsity": "50%"}}, "prune.sparsity: must be a list"),
        ({"seeds": []}, "seeds: must be a list with something in it"),
        ({"out": None}, "out: is missing"),
        ({"recipe": {"out": "here"}}, "recipe: out: the study says it"),
        ({"recipe": {"seed": 3}}, "recipe: seed: the study says it"),
        ({"recipe": None}, "recipe: needs the values of a recipe"),
        ({"variants": {"one": 3}}, "variants: one: must be {dotted key: value"),
        ({"lines": [{"keys": ["prune.vision"], "sum": "1"}]}, "line 1: from: is missing"),
        ({"teacher_cache": "yes"}, "teacher_cache: 'yes' is not true or false"),
    ],
)
def test_what_a_file_must_not_say_is_refused_with_the_nearest_right_word(file, changes, why):
    with pytest.raises(RessaError) as refused:
        read_study(file(**changes))
    assert why in str(refused.value)
    assert "study.yaml: " in str(refused.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"keys": ["a"], "value": [[1]]}, "unknown key 'value': did you mean 'values'?"),
        ({"keys": ["a", "b"], "values": [[1]]}, "each a list of 2 values"),
        ({"keys": ["a", "b"], "values": [[1, 2]], "sum": 1}, "values says all points: leave sum out"),
        ({"keys": ["a", "a"], "values": [[1, 2]]}, "keys: must be a list of dotted keys"),
        ({"keys": ["a"], "sum": 1, "from": 0, "to": 1, "points": 3}, "1 keys: equal steps are of two keys"),
        ({"keys": ["a", "b"], "sum": "120%", "from": "10%", "to": "90%", "points": 3}, "a point is 110%"),
        ({"keys": ["a"], "from": "x", "to": 1, "points": 3}, "from: 'x' is no share"),
        ({"keys": ["a"], "from": 0, "to": 1, "points": 1}, "points: '1' is not a whole number of at least 2"),
    ],
)
def test_a_line_that_is_none_is_refused(line, why):
    with pytest.raises(RessaError, match=r".") as refused:
        points(line)
    assert why in str(refused.value)


def test_points_of_a_line_add_up_exactly():
    told = points({"keys": ["v", "l"], "sum": 1.2, "from": "30%", "to": 0.9, "points": 7})
    assert [point["v"] for point in told.points] == ["30%", "40%", "50%", "60%", "70%", "80%", "90%"]
    assert [point["l"] for point in told.points] == ["90%", "80%", "70%", "60%", "50%", "40%", "30%"]
    assert told.name == "sum 1.2"


def test_a_recipe_may_be_a_file_beside_the_study(file, told, tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(told["recipe"] | {"out": "elsewhere", "seed": 7}))
    assert read_study(file(recipe="base.yaml")).cells == read_study(file()).cells


def test_one_cache_of_the_teacher_serves_all_cells_that_ask_it_the_same(file, told):
    recipe = told["recipe"] | {"repair": {"steps": 1, "samples": 4}}
    variants = {
        "all": {},
        "fewer words": {"repair.top_k": 8},
        "alone": {"repair.kl_weight": 0, "repair.hidden_weight": 0},
    }
    study = read_study(file(recipe=recipe, variants=variants, teacher_cache=True, seeds=[0]))
    caches = {cell.name.split("_")[1]: set() for cell in study.cells}
    for cell in study.cells:
        caches[cell.name.split("_")[1]].add(cell.recipe.repair.teacher_cache)
    assert [len(found) for found in caches.values()] == [1, 1, 1]
    assert caches["alone"] == {None}
    assert caches["all"] != caches["fewer-words"]


# ---- what is made ----------------------------------------------------------------------------------------------------


def test_four_cells_from_end_to_end_are_those_that_run_makes_alone(file, told, tmp_path):
    recipe = told["recipe"] | {"repair": {"steps": 1, "batch_size": 2, "samples": 4, "rank": 2}}
    study = read_study(file(recipe=recipe, teacher_cache=True))
    make(study)
    rows = results(study)
    assert {row["cell"] for row in rows} == {cell.name for cell in study.cells}
    assert {row["status"] for row in rows} == {"finished"}
    for cell in study.cells:
        assert read_recipe(cell.folder / "recipe.yaml") == cell.recipe
        assert "finished" in (cell.folder / "log.txt").read_text()
    for cell in (study.cells[0], study.cells[-1]):  # of either seed, of either sparsity
        told_again = run(replace(cell.recipe, out=str(tmp_path / "alone" / cell.name)))
        mine = {(r["role"], r["measurement"]): r["value"] for r in rows if r["cell"] == cell.name}
        for role, scores in told_again["scores"].items():
            assert mine[role, "exact_match"] == scores["exact_match"]
            assert mine[role, "perplexity"] == scores.get("perplexity", mine["dense", "perplexity"])
        for model in ("pruned", "repaired"):
            files = [folder / model / "model.safetensors" for folder in (cell.folder, tmp_path / "alone" / cell.name)]
            assert files[0].read_bytes() == files[1].read_bytes()
    assert len(list((study.out / "shared").glob("teacher-*"))) == 2  # one a seed


def test_progress_counts_the_cells_that_are_done(file):
    seen: list[tuple[int, int]] = []
    study = read_study(file(seeds=[0]))
    engine.make(study, study.cells, lambda *told: seen.append(told[:2]), lambda: lambda stage: lambda *_: None)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {done for done, _ in seen} == set(range(len(study.cells) + 1))


def test_what_cells_have_in_common_is_made_once(file, told, monkeypatch):
    asked = []
    real = ressa.pipeline.stage.evaluate

    def counted(model, **more):
        asked.append(model)
        return real(model, **more)

    monkeypatch.setattr("ressa.pipeline.stage.evaluate", counted)
    study = read_study(file(seeds=[0], variants={"one": {}, "two": {"repair": {"steps": 1, "samples": 2, "rank": 2}}}))
    make(study)
    assert asked.count(told["recipe"]["model"]) == 1  # the dense scores, of four cells
    assert len(asked) == 1 + 2 + 2  # two prunes for four cells, two repairs
    pruned = [cell.folder / "pruned" / "model.safetensors" for cell in study.cells if "2-4" in cell.name]
    assert pruned[0].samefile(pruned[1])


def test_the_table_holds_scores_with_intervals_paired_differences_and_sparsity(file):
    study = read_study(file(seeds=[0], variants={"both": {}, "language only": {"prune.vision": 0}}))
    make(study)
    rows = table(study.out)
    mine = {(r["role"], r["measurement"]): r for r in rows if r["variant"] == "language only" and r["seed"] == "0"}
    assert float(mine["pruned", "sparsity_vision"]["value"]) == 0
    assert float(mine["pruned", "sparsity_language"]["value"]) == 0.5
    assert 0 < float(mine["pruned", "sparsity"]["value"]) < 0.5
    difference = mine["pruned", "exact_match minus dense"]
    scores = [float(mine[role, "exact_match"]["value"]) for role in ("pruned", "dense")]
    assert float(difference["value"]) == scores[0] - scores[1]
    assert float(difference["low"]) <= float(difference["value"]) <= float(difference["high"])
    assert mine["pruned", "kl"]["low"]
    import pyarrow.parquet

    parquet = pyarrow.parquet.read_table(study.out / "results.parquet").to_pylist()
    assert [row["cell"] for row in parquet] == [row["cell"] for row in results(study)]
    assert {type(row["seed"]) for row in parquet} == {int}


def test_a_changed_study_makes_what_changed_and_leaves_the_rest_alone(file):
    study = read_study(file(seeds=[0]))
    make(study)
    before = made(study)
    changed = read_study(file(seeds=[0], grid={"prune.sparsity": ["2:4", "70%"]}))
    make(changed)
    after = made(changed)
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)
    assert {row["prune.sparsity"] for row in table(study.out)} == {"2:4", "70%"}


def test_a_cell_that_fails_is_kept_with_its_error_and_tried_again(file, ressa, monkeypatch):
    path = file(grid={"prune.keep_dense": [0, 99]}, seeds=[0])
    code, out, err = ressa("study", path)
    assert code == 2
    assert "1 of 2 cells failed; seed-0_keep_dense-99_" in err
    assert "1 of 2 cells finished, 1 failed" in out
    study = read_study(path)
    (failed,) = [cell for cell in study.cells if "keep_dense-99_" in cell.name]
    why = (failed.folder / "error.txt").read_text(encoding="utf-8")
    assert "keep" in why
    row = [row for row in table(study.out) if row["status"] == "failed"]
    assert [(r["cell"], r["error"]) for r in row] == [(failed.name, why.strip())]
    mended = replace(failed.recipe.prune, keep_dense=1)
    monkeypatch.setattr(engine, "run", lambda recipe, *more: run(replace(recipe, prune=mended), *more))
    make(read_study(path))  # as if the fault were mended
    assert {row["status"] for row in results(study)} == {"finished"}
    assert not (failed.folder / "error.txt").exists()


def test_an_unforeseen_error_is_kept_whole(file, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(engine, "run", broken)
    study = read_study(file())
    make(study)
    for cell in study.cells:
        assert "Traceback" in (cell.folder / "error.txt").read_text()
    with pytest.raises(RessaError, match=r"4 of 4 cells failed; .*nobody thought of this"):
        engine.report_failures(study)


def test_what_every_cell_would_be_refused_for_is_refused_before_the_first(file, refused, told):
    err = refused("study", file(recipe=told["recipe"] | {"evaluate": {"split": "nowhere"}}))
    assert "nowhere" in err


def test_a_measurement_that_nothing_is_called_is_refused_with_the_nearest(file, ressa):
    code, _, err = ressa("study", file(measure=["exact_mach"], seeds=[0]))
    assert code == 2
    assert "unknown measurement 'exact_mach': did you mean 'exact_match'?" in err


def test_plots_and_the_table_are_named_at_the_end(file, ressa, told):
    code, out, err = ressa("study", file(seeds=[0]))
    assert code == 0
    assert all(line.startswith("study: ") for line in err.splitlines())  # how far it is, where it takes long
    assert f"table: {told['out']}/results.csv and .parquet" in out
    assert f"plot: {told['out']}/exact_match.png" in out
    assert f"page: {told['out']}/report.html (seed 0)" in out
    assert (Path(told["out"]) / "exact_match.svg").is_file()
    assert ressa("study", file(seeds=[0]), "--dry-run")[1].endswith("2 cells\n")
