"""Settings: declared once, offered as keywords, and their limits hold for whoever calls, and in time."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy
import pytest
import torch

import ressa
from ressa import compare, plan
from ressa.errors import RessaError
from ressa.evaluation.settings import Evaluate
from ressa.machine import check_machine
from ressa.pipeline.recipe import Recipe
from ressa.pruning.request import Request
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair
from ressa.settings import Runtime, build, by_keywords, check, setting

SECTIONS = [Prune, Repair, Evaluate]


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch):
    def load(*_, **__):
        raise AssertionError("weights were loaded")

    for name in ("pruning.verb.load_streamed", "repairing.verb.load", "evaluation.verb.load_to_ask"):
        monkeypatch.setattr(f"ressa.{name}", load)
    monkeypatch.setattr("ressa.evaluation.blocks.load_streamed", load)


def refused(call) -> str:
    with pytest.raises(RessaError) as told:
        call()
    line = str(told.value)
    assert "\n" not in line
    return line


def beyond(f) -> list:
    """Values that a setting may not be, each just out of its limits or of another kind."""
    limits, found = f.metadata, [[], object()]
    for bound, step in ((limits["least"], -1), (limits["most"], 1), (limits["above"], 0)):
        found += [] if bound is None else [bound + step]
    return found + (["nonsense"] if limits["among"] else [])


@pytest.mark.parametrize("cls", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_value_that_a_recipe_refuses_is_refused_from_python_in_the_same_words(cls):
    for f in fields(cls):
        for value in beyond(f):
            mine = refused(lambda value=value, f=f: cls(**{f.name: value}))
            assert refused(lambda value=value, f=f: build(cls, {f.name: value}, "here")) == f"here: {mine}"
            assert f.name in mine


PYTHON = {
    "beyond one": ({"asymmetric": 7.0}, "prune: asymmetric: 7.0 must be at most 1"),
    "negative damp": ({"damp": -3}, "prune: damp: -3.0 must be at least 0"),
    "no number": ({"damp": float("nan")}, "prune: damp: nan is no number that can be used"),
    "infinite": ({"method": "sparsegpt", "damp": float("inf")}, "prune: damp: inf is no number"),
    "text for a number": ({"samples": "8"}, "prune: samples: '8' is not a whole number"),
    "half a sample": ({"samples": 1.5}, "prune: samples: 1.5 is not a whole number"),
    "no sparsity": ({"sparsity": None}, "prune: sparsity: has no value"),
    "a list": ({"sparsity": [2, 4]}, r"prune: sparsity: \[2, 4\] is not a text"),
    "unknown order": ({"order": "blocks"}, "prune: unknown order 'blocks': did you mean 'block'"),
    "a seed below 0": ({"seed": -1}, "prune: seed: -1 must be at least 0"),
    "a seed beyond numpy": ({"seed": 2**32}, "prune: seed: 4294967296 must be at most 4294967295"),
    "number for a switch": ({"patch_embedding": 1}, "prune: patch_embedding: 1 is not true or false"),
    "no such device": ({"device": "cuda:99"}, "'cuda:99' is not on this machine"),
    "no such dtype": ({"dtype": ["float32"]}, r"dtype: \[.float32.\] is not a text"),
    "token weights": ({"token_weights": {"image": "x"}}, "'image=x' is not of the form image=0.1,text=1"),
    "no token weights": ({"token_weights": [1]}, r"token_weights: \[1\] is not a text"),
    "no file": ({"allocation": 5}, "unknown allocation '5'"),
    "asymmetric wanda": ({"method": "wanda", "asymmetric": 0.5}, "which method 'wanda' leaves as they are"),
    "a group of N:M": ({"sparsity": "2:4", "group": "matrix"}, r"in a share \(50%\), not in N:M: leave it out"),
}


@pytest.mark.parametrize(("wrong", "told"), PYTHON.values(), ids=PYTHON.keys())
def test_prune_refuses_from_python(wrong, told, llava_folder, tiny_data, tmp_path):
    with pytest.raises(RessaError, match=told):
        ressa.prune(llava_folder, tmp_path / "out", data=tiny_data, **wrong)
    assert not list(tmp_path.iterdir())


def test_what_python_may_write_otherwise_than_yaml_is_taken():
    told = Prune(sparsity=0.5, damp=1, token_weights={"image": 0.1}, method="sparsegpt")
    assert (told.sparsity, told.damp, told.token_weights) == ("0.5", 1.0, "image=0.1")
    assert Prune(sparsity="50%", allocation="owl", spread=numpy.float64(0.1)).spread == 0.1
    assert Prune(allocation=Path("a.json")).allocation == "a.json"
    assert Prune(method={"name": "ria", "power": 0.3}).method == "ria(power=0.3)"


EVALUATE = {
    "beams": ({"num_beams": 0}, "evaluate: num_beams: 0 must be at least 1"),
    "kind": ({"batch_size": 2.5}, "evaluate: batch_size: 2.5 is not a whole number"),
    "way": ({"choices": "guess", "task": "mmbench"}, "evaluate: unknown choices 'guess'"),
    "switch": ({"perplexity": "yes"}, "evaluate: perplexity: 'yes' is not true or false"),
    "device": ({"device": "cuda:99"}, "'cuda:99' is not on this machine"),
    "no data": ({"data": None}, "evaluate: needs data"),
    "penalty without beams": ({"length_penalty": -1.0}, "length_penalty: weighs beams .* add num_beams"),
    "longer than it may be": ({"min_new_tokens": 5, "max_new_tokens": 2}, "5 is more than max_new_tokens, 2"),
    "a list for a text": ({"prompt": [5]}, r"evaluate: prompt: \[5\] is not a text"),
    "grey": ({"grey": "yes"}, "evaluate: grey: 'yes' is not true or false"),
    "a bare model": ({"against": object()}, "against: <object .* is neither a text nor a path"),
    "half a model": ({"against": (1,)}, r"against: a loaded one is a pair, \(model, processor\)"),
    "no folder": ({"out": 5}, "evaluate: out: 5 is neither a text nor a path"),
    "other answers": ({"versus": 5}, "evaluate: versus: 5 is neither a text nor a path"),
    "no data of a task": ({"data": 5, "task": "vqav2"}, "data: expected a folder, .* not int"),
    "images of records": ({"images": "somewhere"}, "say themselves where their pictures are"),
}


@pytest.mark.parametrize(("wrong", "told"), EVALUATE.values(), ids=EVALUATE.keys())
def test_evaluate_refuses_from_python(wrong, told, llava_folder, tiny_data, tmp_path):
    with pytest.raises(RessaError, match=told):
        ressa.evaluate(llava_folder, **{"data": tiny_data, "out": tmp_path / "out"} | wrong)
    assert not list(tmp_path.iterdir())


def test_another_vocabulary_is_refused_from_the_configs(llava_folder, causal_lm_folder, tiny_data, tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(causal_lm_folder)
    config.vocab_size += 8
    config.save_pretrained(tmp_path / "other")
    line = refused(lambda: ressa.evaluate(causal_lm_folder, data=tiny_data, against=tmp_path / "other"))
    assert "different vocabularies" in line


def test_answers_to_compare_with_that_are_of_other_records_are_refused_first(llava_folder, tiny_data, tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "test-1", "answer": "red"}\n', encoding="utf-8")
    line = refused(lambda: ressa.evaluate(llava_folder, data=tiny_data, versus=tmp_path))
    assert "has no answer to record 'test-2' and 6 more" in line


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            lambda: {"damp": 0.1, "methods": ["sparsegpt", "wanda"]},
            "prune: method 'wanda' has no",
        ),
        (lambda: {"asymmetric": 1.0, "methods": ["admm", "ria"]}, "prune: asymmetric moves weights"),
        (lambda: {"samples": 0}, "prune: samples: 0 must be at least 1"),
        (lambda: {"sparsity": "50%", "group": "part", "methods": ["magnitude", "wanda"]}, "for method magnitude"),
        (lambda: {"asked": Evaluate(limit=0)}, "evaluate: limit: 0 must be at least 1"),
        (lambda: {"asked": Evaluate(task="vqav2")}, "leave task 'vqav2' out"),
        (lambda: {"asked": Evaluate(prompt="{nonsense}")}, "prompt: may hold"),
        (lambda: {"asked": {"limit": 1}}, r"compare: \{'limit': 1\} is no Evaluate: make one"),
        (lambda: {"methods": "wanda"}, "at least one method"),
        (lambda: {"device": "cuda:99"}, "'cuda:99' is not on this machine"),
        (lambda: {"seed": -1}, "prune: seed: -1 must be at least 0"),
    ],
)
def test_compare_refuses_before_anything_is_evaluated(wrong, told, llava_folder, tiny_data, tmp_path):
    with pytest.raises(RessaError, match=told):
        compare(llava_folder, tmp_path / "out", **{"data": tiny_data, "methods": ["wanda"]} | wrong())
    assert not list(tmp_path.iterdir())


RUN = {
    "limit of prune": (lambda: {"prune": Prune(damp=-3)}, "prune: damp: -3.0 must be at least 0"),
    "limit of repair": (lambda: {"repair": Repair(kl_weight=2)}, "repair: kl_weight: 2.0 must be at most 1"),
    "kind": (lambda: {"evaluate": Evaluate(limit="5")}, "evaluate: limit: '5' is not a whole number"),
    "asymmetric": (lambda: {"prune": Prune(method="ria", asymmetric=0.1)}, "prune: asymmetric moves weights"),
    "nothing to repair": (lambda: {"repair": Repair(steps=0)}, "nothing to do without reconstruct"),
    "no such device": (
        lambda: {"runtime": Runtime(device="cuda:99"), "repair": None},
        "device: 'cuda:99' is not on this machine",
    ),
    "dtype": (lambda: {"runtime": Runtime(dtype="int8")}, "runtime: unknown dtype 'int8'"),
    "dtype of repair": (lambda: {"runtime": Runtime(dtype="float16")}, "repair: dtype float16 would need"),
    "two dtypes": (
        lambda: {"runtime": Runtime(dtype="float32"), "repair": Repair(bf16=True)},
        "bf16 and dtype float32 contradict",
    ),
    "parts": (lambda: {"repair": Repair(parts="speech")}, "unknown part 'speech'"),
    "reports": (lambda: {"repair": Repair(report_to="tensorbord")}, "did you mean 'tensorboard'"),
    "choices": (lambda: {"evaluate": Evaluate(choices="likelihood")}, "choices: folder is no multiple choice"),
    "images": (lambda: {"evaluate": Evaluate(images="somewhere")}, "say themselves where their pictures are"),
    "benchmark": (lambda: {"evaluate": Evaluate(task="gqa")}, "no testdev_questions|no testdev"),
    "beams": (
        lambda: {"evaluate": Evaluate(task="flickr30k-retrieval", num_beams=2)},
        "num_beams: flickr30k-retrieval ranks by likelihood",
    ),
}


@pytest.mark.parametrize(("wrong", "told"), RUN.values(), ids=RUN.keys())
def test_run_refuses_before_its_first_stage_what_a_later_one_would(wrong, told, llava_folder, tiny_data, tmp_path):
    whole = Recipe(str(llava_folder), str(tiny_data), str(tmp_path / "out"), 0, Prune(), Repair(), Evaluate())
    with pytest.raises(RessaError, match=told):
        ressa.run(replace(whole, **wrong()))
    assert not list(tmp_path.iterdir())


def test_what_is_no_recipe_and_no_model_is_refused(tmp_path):
    assert "run: 'recipe.yaml' is no Recipe" in refused(lambda: ressa.run("recipe.yaml"))
    assert "prune: model: 5 is neither" in refused(lambda: ressa.prune(5, tmp_path / "out"))
    assert "repair: teacher: None is" in refused(lambda: ressa.repair("a", tmp_path, teacher=None, data="b"))
    assert "inspect: model: None is neither" in refused(lambda: ressa.inspect(None))
    assert "inspect: model: None is neither" in refused(lambda: plan(None))


def test_a_teachers_cache_that_cannot_be_a_folder_is_refused_first(llava_folder, tiny_data, tmp_path):
    told = {"teacher": llava_folder, "data": tiny_data, "teacher_cache": __file__}
    assert "is a file; name a folder" in refused(lambda: ressa.repair(llava_folder, tmp_path / "out", **told))


def test_run_refuses_before_its_first_stage_a_folder_that_stands_in_the_way(llava_folder, tiny_data, tmp_path):
    (tmp_path / "repaired").mkdir()
    (tmp_path / "repaired" / "kept.txt").write_text("kept")
    recipe = Recipe(str(llava_folder), str(tiny_data), str(tmp_path), 0, Prune(), Repair())
    assert "repaired: the output folder is not empty" in refused(lambda: ressa.run(recipe))
    assert [path.name for path in tmp_path.iterdir()] == ["repaired"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"samples": 2.5}, "samples: 2.5 is not a whole number"),
        ({"steps": "10"}, "steps: '10' is not a whole number"),
        ({"gflops": "fast"}, "gflops: 'fast' is not a number"),
        ({"rank": 0}, "rank: 0 must be at least 1"),
    ],
)
def test_a_plan_refuses_from_python(wrong, told):
    with pytest.raises(RessaError, match=told):
        plan("demo", **wrong)


def test_what_is_no_number_at_all_is_shown_in_one_short_line(llava_folder, tiny_data, tmp_path):
    line = refused(lambda: ressa.prune(llava_folder, tmp_path / "out", data=tiny_data, samples=torch.ones(99, 2)))
    assert re.search(r"prune: samples: tensor\(\[\[1\., 1\.\], .* \.\.\. is not a whole number", line)
    assert len(line) < 150


# ---- how settings are offered ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    depth: int = setting(3, "How deep.")

    def __post_init__(self) -> None:
        check(self, "inner")


@dataclass(frozen=True)
class Outer:
    name: str = setting("x", "What it is called.")
    inner: Inner | None = None

    def __post_init__(self) -> None:
        check(self)


def verb(a, *, settings: Inner, extra: int = 1) -> tuple:
    """Does it."""
    return a, settings, extra


def several(a, *, settings: Callable[..., Inner]) -> list:
    """Does it for each."""
    return [settings(depth=depth) for depth in a]


def test_a_verb_takes_the_fields_of_its_settings_as_keywords():
    called = by_keywords(verb)
    assert called("a") == ("a", Inner(3), 1)
    assert called("a", depth=5, extra=2) == ("a", Inner(5), 2)
    assert list(inspect.signature(called).parameters) == ["a", "depth", "extra"]
    assert "depth: How deep." in called.__doc__
    assert refused(lambda: called("a", depth=0)) == "inner: depth: 0 must be at least 1"


def test_a_field_of_which_a_verb_takes_several_is_left_out():
    called = by_keywords(several, "depth")
    assert list(inspect.signature(called).parameters) == ["a"]
    assert called([1, 2]) == [Inner(1), Inner(2)]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"nam": 1}, "f: unknown key 'nam': did you mean 'name'? (known: inner, name)"),
        ({"inner": {"dept": 1}}, "f: inner: unknown key 'dept': did you mean 'depth'? (known: depth)"),
        ({"inner": None}, "f: inner: has nothing in it; write {} for its defaults, or leave the line out"),
        ({"inner": {"depth": 0}}, "f: inner: depth: 0 must be at least 1"),
        ({"name": None}, "f: name: has no value"),
        ([], "f: must be `key: value` lines, not list"),
    ],
)
def test_what_a_mapping_may_not_say_is_refused_with_its_place(values, line):
    assert refused(lambda: build(Outer, values, "f")) == line


def test_a_mapping_becomes_an_object_with_its_sections():
    assert build(Outer, {"name": 7, "inner": {}}, "f") == Outer("7", Inner())
    assert build(Outer, {"inner": Inner(4)}, "f").inner == Inner(4)


def test_all_keys_are_looked_at_before_a_section_is_made():
    assert "unknown key 'odd'" in refused(lambda: build(Outer, {"inner": {"depth": 0}, "odd": 1}, "f"))


# ---- settings of verbs that stand for more than a number -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("image", "'image' is not of the form image=0.1,text=1"),
        ("image=lots", "is not of the form"),
        ("picture=1", "unknown kind of token 'picture'"),
        ("image=-1", "the weight of image tokens is -1.0"),
        ("image=0,text=0,answer=0", "nothing would be left to calibrate on"),
    ],
)
def test_token_weights_are_read_before_work(text, line):
    assert line in refused(lambda: Prune(token_weights=text))


def test_token_weights_reach_calibration():
    assert Request(Prune(token_weights="image=0.1, text=2")).token_weights == {"image": 0.1, "text": 2.0}
    assert Request(Prune()).token_weights is None
    both = Request(Prune(token_weights="gradient, image=0.1"))
    assert (both.gradient, both.token_weights) == (True, {"image": 0.1})
    assert (Request(Prune(token_weights="gradient")).token_weights, Request(Prune()).gradient) == (None, False)


def test_the_seed_of_a_recipe_is_that_of_its_sections():
    recipe = Recipe(seed=3, prune=Prune(), repair=Repair(seed=3))
    assert (recipe.prune.seed, recipe.repair.seed) == (3, 3)
    assert "prune: seed 2 is not the recipe's, 3" in refused(lambda: Recipe(seed=3, prune=Prune(seed=2)))


def test_threads_are_taken():
    before = torch.get_num_threads()
    try:
        check_machine("cpu", "auto", 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert refused(lambda: Runtime(threads=0)) == "runtime: threads: 0 must be at least 1"
