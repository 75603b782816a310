"""What one call leaves behind for the next: a note, an environment, the peak of memory, a seed. None may mislead."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import ressa
from ressa import compare, methods
from ressa.errors import RessaError
from ressa.evaluation.settings import Evaluate
from ressa.machine import forget_peak, peak_memory
from ressa.model.load import load
from ressa.patterns import NofM, Unstructured
from ressa.pipeline import stage as engine
from ressa.pipeline.recipe import Recipe
from ressa.pipeline.run import run
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair
from ressa.repairing.stages import Run
from ressa.repairing.trainer import LOGS
from ressa.statistics import Gram, Moments, needs


@pytest.fixture
def recipe(llava_folder, tiny_data, tmp_path) -> Recipe:
    prune, repair = Prune(method="magnitude"), Repair(steps=1, batch_size=2, samples=2, rank=2)
    return Recipe(str(llava_folder), str(tiny_data), str(tmp_path / "out"), prune=prune, repair=repair)


def notes(recipe: Recipe) -> list[str]:
    return sorted(path.stem for path in Path(recipe.out, "stages").glob("*"))


def killed(recipe: Recipe, stage: str, monkeypatch) -> None:
    """A kill right after the folder of a stage appeared: nothing that the process would still do is done."""
    real = getattr(engine, stage)

    def die(*given, **more):
        real(*given, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, stage, die)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)


# ---- a run that was killed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["prune", "repair"])
def test_a_run_killed_right_behind_a_stage_goes_on_behind_it(recipe, stage, monkeypatch):
    killed(recipe, stage, monkeypatch)
    folder = Path(recipe.out, {"prune": "pruned", "repair": "repaired"}[stage])
    made = (folder / "ressa.json").stat().st_mtime_ns
    result = run(recipe)
    assert (folder / "ressa.json").stat().st_mtime_ns == made
    assert 0 <= result["seconds"][stage] < 60
    assert notes(recipe) == ["prune", "repair"]


def test_what_a_killed_run_made_is_not_taken_for_what_other_settings_would_make(recipe, monkeypatch):
    killed(recipe, "prune", monkeypatch)
    with pytest.raises(RessaError, match="pruned: made with other settings"):
        run(replace(recipe, prune=Prune(method="random")))


def test_a_folder_that_no_run_made_is_never_taken_for_a_stage(recipe):
    ressa.prune(recipe.model, Path(recipe.out, "pruned"), method="random", seed=5)
    for _ in range(2):
        with pytest.raises(RessaError, match="pruned: the output folder is not empty"):
            run(recipe)
    assert not notes(recipe)


def test_a_stage_that_fails_leaves_no_note_of_itself(recipe, monkeypatch):
    def fail(*_, **__):
        raise RessaError("no")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "prune", fail)
        with pytest.raises(RessaError, match="no"):
            run(recipe)
        assert not Path(recipe.out).exists()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "repair", fail)
        with pytest.raises(RessaError, match="no"):
            run(recipe)
        assert notes(recipe) == ["prune"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RessaError])
def test_scores_that_stood_there_before_are_not_taken_for_those_of_a_stage_that_was_stopped(recipe, fault, monkeypatch):
    recipe = replace(recipe, prune=None, repair=None, evaluate=Evaluate(limit=2, max_new_tokens=2))
    folder = Path(recipe.out, "scores", "dense")
    ressa.evaluate(recipe.model, data=recipe.data, limit=1, max_new_tokens=1, out=folder)

    def stop(*_, **__):
        raise fault("no")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "evaluate", stop)
        with pytest.raises(fault):
            run(recipe)
    assert run(recipe)["scores"]["dense"]["n"] == 2
    assert notes(recipe) == ["evaluate dense"]


# ---- a second call in one process ------------------------------------------------------------------------------------


def test_each_repair_logs_beside_its_own_folder(recipe, tmp_path, monkeypatch):
    seen, real = [], Run.train

    def train(self, *given):
        seen.append(os.environ.get(LOGS))
        return real(self, *given)

    monkeypatch.setattr(Run, "train", train)
    monkeypatch.delenv(LOGS, raising=False)
    pruned = tmp_path / "pruned"
    ressa.prune(recipe.model, pruned, method="magnitude")

    def repair(name: str) -> None:
        told = {"teacher": recipe.model, "data": recipe.data, "steps": 1, "batch_size": 2, "samples": 2, "rank": 2}
        ressa.repair(pruned, tmp_path / name, **told)

    repair("a")
    repair("b")
    assert LOGS not in os.environ
    monkeypatch.setenv(LOGS, "mine")
    repair("c")
    assert os.environ[LOGS] == "mine"
    assert seen == [f"{tmp_path / 'a'}.logs", f"{tmp_path / 'b'}.logs", "mine"]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not forget the peak")
def test_the_peak_of_memory_is_the_stages_own(recipe, tmp_path):
    def ballast() -> int:
        """The peak of what came before: 800 MB more than now."""
        forget_peak()
        torch.ones(200_000_000)
        return peak_memory()

    before = ballast()
    pruned = ressa.prune(recipe.model, tmp_path / "pruned", method="magnitude")
    assert pruned["peak_memory_bytes"] < before - 400e6
    before = ballast()
    told = {"teacher": recipe.model, "data": recipe.data, "steps": 1, "batch_size": 2, "samples": 2, "rank": 2}
    repaired = ressa.repair(tmp_path / "pruned", tmp_path / "repaired", **told)
    assert repaired["peak_memory_bytes"] < before - 400e6


# ---- seeds -----------------------------------------------------------------------------------------------------------


def zeros_of(folder: Path) -> list[torch.Tensor]:
    return [module.weight == 0 for module in load(folder)[0].modules() if isinstance(module, nn.Linear)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", ["random", "random+refit"])
def test_another_seed_draws_other_zeros_and_the_same_one_the_same(method, recipe, tmp_path):
    found = {}
    for name, seed in (("0", 0), ("1", 1), ("again", 1)):
        ressa.prune(recipe.model, tmp_path / name, method=method, data=recipe.data, samples=4, seed=seed)
        found[name] = zeros_of(tmp_path / name)
    assert same(found["1"], found["again"])
    assert not same(found["0"], found["1"])


def test_seed_0_draws_what_the_bare_method_draws():
    weight, pattern = torch.randn(8, 16), NofM(2, 4)
    bare, named, other = (how(weight, None, pattern) for how in (methods.METHODS["random"], *map(seeded, (0, 1))))
    assert torch.equal(bare, named)
    assert not torch.equal(bare, other)
    assert methods.get("wanda", seed=3) is methods.METHODS["wanda"]
    assert methods.get("random", seed=3).needs is None


def seeded(seed: int):
    return methods.get("random", seed=seed)


def test_a_method_of_ones_own_that_draws_hears_the_seed_with_its_refit_too(monkeypatch):
    heard = []

    @needs(Moments)
    def drawn(weight_OI, inputs, pattern, *, seed=0):
        heard.append(seed)
        return weight_OI

    monkeypatch.setitem(methods.METHODS, "drawn", drawn)
    inputs = Gram(4)
    inputs.add(torch.randn(9, 4))
    for name in ("drawn", "drawn+refit"):
        methods.get(name, seed=7)(torch.randn(2, 4), inputs, Unstructured(0.5))
    assert heard == [7, 7]


def test_compare_draws_by_its_seed(recipe, tmp_path):
    found = []
    for seed in (0, 1):
        out, asked = tmp_path / str(seed), Evaluate(limit=1, max_new_tokens=1)
        compare(recipe.model, out, data=recipe.data, methods=["random"], asked=asked, seed=seed)
        found.append(zeros_of(out / "random"))
    assert not same(*found)


def test_compare_takes_a_group_of_many_matrices_for_magnitude(recipe, tmp_path, monkeypatch, capsys):
    from ressa import cli

    words = ["compare", recipe.model, "--data", recipe.data, "--methods", "magnitude", "--group", "part"]
    words += ["--sparsity", "50%", "--limit", "1", "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr("sys.argv", ["ressa", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    sparsity = json.loads((tmp_path / "out" / "magnitude" / "ressa.json").read_text())["together"]["sparsity"]
    assert sparsity == pytest.approx(0.5, abs=1e-3)
