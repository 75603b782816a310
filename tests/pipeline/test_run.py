"""A recipe is carried out once: finished stages rest, changed ones refuse to overwrite, interrupted ones go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import ressa
from ressa.errors import RessaError
from ressa.evaluation.settings import Evaluate
from ressa.pipeline import stage as engine
from ressa.pipeline.recipe import Recipe, read_recipe, write_recipe
from ressa.pipeline.run import run
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair

VERBS = ("prune", "repair", "evaluate", "write_emoji")


@pytest.fixture
def copied(finished, tmp_path) -> Recipe:
    """The same run in a folder of one's own."""
    recipe, _ = finished
    return replace(recipe, out=str(shutil.copytree(recipe.out, tmp_path / "out")))


@pytest.fixture
def idle(monkeypatch):
    """Every verb fails when it is called, but for those that are named."""

    def fail(*args, **kwargs):
        raise AssertionError("this was to rest")

    def set_idle(*, but: tuple[str, ...] = ()) -> list[str]:
        called: list[str] = []
        for name in VERBS:
            real = getattr(engine, name)

            def counted(*args, _name=name, _real=real, **kwargs):
                called.append(_name)
                return _real(*args, **kwargs)

            monkeypatch.setattr(engine, name, counted if name in but else fail)
        return called

    return set_idle


def times(out: str) -> dict[str, int]:
    """When each file below was last written; recipe.yaml and stages/ are notes."""
    files = (path for path in Path(out).rglob("*") if path.is_file() and path.name != "recipe.yaml")
    return {str(path): path.stat().st_mtime_ns for path in files}


# ---- what a run makes ------------------------------------------------------------------------------------------------


def test_a_run_makes_every_stage_and_tells_of_it(finished):
    recipe, result = finished
    out = Path(recipe.out)
    models = {"dense": recipe.model, "pruned": str(out / "pruned"), "repaired": str(out / "repaired")}
    assert result["models"] == models
    assert json.loads((out / "pruned" / "ressa.json").read_text())["command"] == "prune"
    assert json.loads((out / "repaired" / "ressa.json").read_text())["command"] == "repair"
    assert list(result["seconds"]) == ["prune", "repair", "evaluate dense", "evaluate pruned", "evaluate repaired"]
    for name in models:
        assert result["scores"][name] == json.loads((out / "scores" / name / "scores.json").read_text())
        assert result["scores"][name]["n"] == 6
    assert result["scores"]["dense"]["kl"] is None
    assert result["scores"]["pruned"]["kl"] > 0
    assert read_recipe(out / "recipe.yaml") == recipe
    assert sorted(path.name for path in out.iterdir()) == ["pruned", "recipe.yaml", "repaired", "scores", "stages"]


def test_all_models_are_asked_the_same_questions(finished):
    recipe, result = finished
    asked = []
    for name in result["models"]:
        lines = (Path(recipe.out) / "scores" / name / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        asked.append([json.loads(line)["id"] for line in lines])
    assert asked[0] == asked[1] == asked[2]


def test_the_settings_of_the_recipe_reach_the_verbs(finished):
    recipe, _ = finished
    pruned = json.loads((Path(recipe.out) / "pruned" / "ressa.json").read_text())["arguments"]
    repaired = json.loads((Path(recipe.out) / "repaired" / "ressa.json").read_text())["arguments"]
    assert (pruned["samples"], pruned["method"], pruned["data"]) == (4, "admm", recipe.data)
    assert (repaired["steps"], repaired["batch_size"], repaired["teacher"]) == (2, 4, recipe.model)


def test_the_emoji_data_is_drawn_where_the_recipe_says_emoji(tmp_path, llava_folder, idle, monkeypatch):
    idle()
    drawn: list[tuple] = []

    def draw(out, *, seed, progress):
        drawn.append((out, seed))
        Path(out).mkdir(parents=True)
        (Path(out) / "README.txt").write_text("scenes")

    monkeypatch.setattr(engine, "write_emoji", draw)
    recipe = Recipe(model=str(llava_folder), out=str(tmp_path / "out"), seed=5)
    for _ in range(2):
        run(recipe)
    assert drawn == [(tmp_path / "out" / "data", 5)]
    with pytest.raises(RessaError, match="data: made with other settings"):
        run(replace(recipe, seed=6))


def test_progress_is_told_for_each_stage_by_its_name(finished, tmp_path):
    recipe, _ = finished
    told: dict[str, list] = {}

    def begin(name):
        told[name] = []
        return lambda done, total, what: told[name].append((done, total))

    run(replace(recipe, out=str(tmp_path / "out"), repair=None, evaluate=None), begin)
    assert list(told) == ["prune"]
    assert told["prune"][-1] == (4, 4)


# ---- what a second run does ------------------------------------------------------------------------------------------


def test_a_second_run_makes_nothing_anew_and_tells_the_same(copied, finished, idle):
    idle()
    before = times(copied.out)
    again = run(copied)
    assert times(copied.out) == before
    _, first = finished
    assert again["scores"] == first["scores"]
    assert again["seconds"] == first["seconds"]


@pytest.mark.parametrize(
    ("change", "in_the_way"),
    [
        ({"repair": Repair(steps=3, batch_size=4)}, ["repaired", "scores/repaired"]),
        ({"prune": Prune(samples=5)}, ["pruned", "repaired", "scores/pruned", "scores/repaired"]),
        ({"evaluate": Evaluate(limit=5)}, ["scores/dense", "scores/pruned", "scores/repaired"]),
        ({"seed": 1}, ["pruned", "repaired", "scores/pruned", "scores/repaired"]),
    ],
)
def test_changed_settings_refuse_to_overwrite_and_name_every_folder_in_the_way(copied, idle, change, in_the_way):
    idle()
    before = times(copied.out)
    with pytest.raises(RessaError) as refused:
        run(replace(copied, **change))
    folders, _, advice = str(refused.value).partition(": made with other settings")
    assert folders.split(", ") == [f"{copied.out}/{name}" for name in in_the_way]
    assert "name another `out`, or delete" in advice
    assert times(copied.out) == before


def test_another_model_or_other_data_is_another_run_even_without_pruning(llava_folder, tiny_data, tmp_path, idle):
    recipe = Recipe(
        model=str(llava_folder),
        data=str(tiny_data),
        out=str(tmp_path / "out"),
        evaluate=Evaluate(limit=2, max_new_tokens=2),
    )
    run(recipe)
    idle()
    for other in ({"model": str(shutil.copytree(llava_folder, tmp_path / "model"))}, {"data": str(tmp_path)}):
        with pytest.raises(RessaError, match="scores/dense: made with other settings"):
            run(replace(recipe, **other))


def test_what_was_deleted_is_made_again_and_the_rest_stays(copied, idle):
    called = idle(but=("repair", "evaluate"))
    shutil.rmtree(Path(copied.out, "repaired"))
    shutil.rmtree(Path(copied.out, "scores", "repaired"))
    before = times(copied.out)
    run(replace(copied, repair=Repair(steps=3, batch_size=4)))
    assert called == ["repair", "evaluate"]
    after = times(copied.out)
    kept = {name: time for name, time in before.items() if "/stages/" not in name}
    assert {name: after[name] for name in kept} == kept


def test_a_stage_that_is_added_later_builds_on_those_that_are_there(finished, tmp_path, idle):
    recipe, _ = finished
    recipe = replace(recipe, out=str(tmp_path / "out"))
    run(replace(recipe, repair=None, evaluate=None))
    called = idle(but=("repair",))
    result = run(replace(recipe, evaluate=None))
    assert called == ["repair"]
    assert result["scores"] == {}


def test_an_interrupted_run_goes_on_where_it_was(finished, tmp_path, idle, monkeypatch):
    recipe, first = finished
    recipe = replace(recipe, out=str(tmp_path / "out"))
    real = engine.evaluate

    def killed(model, **settings):
        if str(model).endswith("repaired"):
            raise KeyboardInterrupt
        return real(model, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    called = idle(but=("evaluate",))
    result = run(recipe)
    assert called == ["evaluate"]
    for name, scores in result["scores"].items():
        assert scores["by_kind"] == first["scores"][name]["by_kind"]


def test_a_run_interrupted_in_its_first_stage_begins_anew(finished, tmp_path, monkeypatch):
    recipe, _ = finished
    recipe = replace(recipe, out=str(tmp_path / "out"), repair=None, evaluate=None)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "prune", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    assert not (tmp_path / "out").exists()
    run(recipe)
    assert (tmp_path / "out" / "pruned" / "ressa.json").is_file()


def test_notes_that_are_no_json_any_more_are_refused(copied, idle):
    idle()
    Path(copied.out, "stages", "prune.json").write_text("{")
    with pytest.raises(RessaError, match=r"prune\.json: is not JSON any more"):
        run(copied)


def as_ressa_kept_it_before(recipe: Recipe, but: tuple[str, ...] = ()) -> None:
    """The notes of a finished run in one file, run.json, without those of some stages."""
    notes = Path(recipe.out, "stages")
    ledger = {file.stem: {"key": "0123456789abcdef", "seconds": 1.5} for file in notes.iterdir()}
    Path(recipe.out, "run.json").write_text(json.dumps({k: v for k, v in ledger.items() if k not in but}))
    Path(recipe.out, "recipe.yaml").write_text(write_recipe(recipe), encoding="utf-8")
    shutil.rmtree(notes)


def test_a_finished_run_with_one_ledger_for_all_stages_rests_too(copied, finished, idle):
    as_ressa_kept_it_before(copied)
    idle()
    assert run(copied)["scores"] == finished[1]["scores"]


def test_what_is_missing_from_such_a_run_is_made(copied, idle):
    as_ressa_kept_it_before(copied, but=("evaluate repaired",))
    shutil.rmtree(Path(copied.out, "scores", "repaired"))
    called = idle(but=("evaluate",))
    run(copied)
    assert called == ["evaluate"]


def test_such_a_run_of_another_recipe_is_not_taken_for_this_one(copied, idle):
    as_ressa_kept_it_before(copied)
    idle()
    with pytest.raises(RessaError, match="pruned: the output folder is not empty"):
        run(replace(copied, prune=Prune(samples=5)))


# ---- by the command line ---------------------------------------------------------------------------------------------


def test_the_command_line_prints_tables_and_draws_the_picture_again(copied, idle, tmp_path, monkeypatch, capsys):
    from ressa import cli

    idle()
    (tmp_path / "recipe.yaml").write_text(write_recipe(copied), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["ressa", "run", str(tmp_path / "recipe.yaml")])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr()
    assert not stop.value.code
    assert told.err == ""
    assert "exact match by kind of question" in told.out
    files = {name: Path(copied.out, name) for name in ("answers.png", "report.html")}
    assert told.out.splitlines()[-2:] == [f"picture: {files['answers.png']}", f"page: {files['report.html']}"]
    assert all(file.is_file() for file in files.values())


def test_the_door_runs_recipes(copied, idle):
    idle()
    assert ressa.run(copied)["out"] == copied.out
