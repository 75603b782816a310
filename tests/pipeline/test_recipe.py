"""What a recipe may say: everything else is refused in one line that says where and what is right."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import ressa
from ressa.errors import RessaError
from ressa.evaluation.settings import Evaluate
from ressa.pipeline.recipe import Recipe, build, read_recipe, write_recipe
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair
from ressa.settings import SEEDS

SHIPPED = sorted((Path(ressa.__file__).parent / "recipes").glob("*.yaml"))
FULL = """
model: some/model
data: records
out: here
seed: 7
prune: {method: sparsegpt, sparsity: 2:4, connector: 0.5, damp: 1e-2, group: row}
repair: {steps: 10, lr: 2e-3, bf16: true}
evaluate: {limit: 5}
"""


@pytest.fixture
def recipe(tmp_path):
    """Reads YAML text as a recipe."""

    def read(text: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return read_recipe(path)

    return read


def test_a_recipe_says_what_was_written(recipe):
    assert recipe(FULL) == Recipe(
        model="some/model",
        data="records",
        out="here",
        seed=7,
        prune=Prune(method="sparsegpt", sparsity="2:4", connector="0.5", damp=0.01, group="row"),
        repair=Repair(steps=10, lr=0.002, bf16=True),
        evaluate=Evaluate(limit=5),
    )


def test_what_was_written_out_reads_back_the_same(recipe):
    assert recipe(write_recipe(recipe(FULL))) == recipe(FULL)
    assert recipe(write_recipe(Recipe(prune=Prune()))) == Recipe(prune=Prune())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prun: {}", "unknown key 'prun': did you mean 'prune'?"),
        ("prune: {sparsty: 50%}", "prune: unknown key 'sparsty': did you mean 'sparsity'?"),
        ("repair: {step: 5}", "repair: unknown key 'step': did you mean 'steps'?"),
        ("evaluate: {max_tokens: 5}", "evaluate: unknown key 'max_tokens': did you mean 'max_new_tokens'?"),
        ("xyzzy: 1", "unknown key 'xyzzy': (known: data, evaluate"),
        ("1: 2", "unknown key '1'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(recipe, text, told):
    with pytest.raises(RessaError, match=r"recipe\.yaml: ") as refused:
        recipe(text)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prune: {samples: many}", "prune: samples: 'many' is not a whole number"),
        ("prune: {samples: 1.5}", "prune: samples: 1.5 is not a whole number"),
        ("prune: {samples: true}", "prune: samples: True is not a whole number"),
        ("prune: {samples: 0}", "prune: samples: 0 must be at least 1"),
        ("prune: {samples: }", "prune: samples: has no value"),
        ("prune: {method: wnda}", "prune: unknown method 'wnda': did you mean 'wanda'?"),
        ("prune: {sparsity: 3:2}", "prune: sparsity '3:2' is neither"),
        ("prune: {sparsity: 1.2}", "prune: sparsity '1.2' is neither"),
        ("prune: {vision: most}", "prune: vision: sparsity 'most' is neither"),
        ("prune: {sparsity: [2, 4]}", "prune: sparsity: [2, 4] is not a text"),
        ("prune: {propagate: sideways}", "prune: unknown propagate 'sideways'"),
        ("prune: {group: rwo}", "prune: unknown group 'rwo': did you mean 'row'?"),
        ("prune: {method: wanda, damp: 0.1}", "prune: method 'wanda' has no setting 'damp'"),
        ("prune: {method: sparsegpt, damp: -1}", "prune: damp: -1.0 must be at least 0"),
        ("prune: 5", "prune: must be `key: value` lines, not int"),
        ("prune:", "prune: has nothing in it; write {} for its defaults, or leave the line out"),
        ("repair: {lr: fast}", "repair: lr: 'fast' is not a number"),
        ("repair: {lr: 0}", "repair: lr: 0.0 must be above 0"),
        ("repair: {lr: 1e999}", "repair: lr: inf is no number"),
        ("repair: {kl_weight: 1.5}", "repair: kl_weight: 1.5 must be at most 1"),
        ("repair: {warmup: -0.1}", "repair: warmup: -0.1 must be at least 0"),
        ("repair: {temperature: 0}", "repair: temperature: 0.0 must be above 0"),
        ("repair: {bf16: 1}", "repair: bf16: 1 is not true or false"),
        ("evaluate: {limit: -3}", "evaluate: limit: -3 must be at least 1"),
        ("seed: -1", "seed: -1 must be at least 0"),
        (f"seed: {SEEDS + 1}", f"must be at most {SEEDS}"),
        ("seed: 010", "seed: '010' is not a whole number"),  # YAML 1.1 would read 8
        ("seed: 1_000", "seed: '1_000' is not a whole number"),
        ("model:", "model: has no value"),
        ("[1, 2]", "must be `key: value` lines, not list"),
        ("", "must be `key: value` lines, not NoneType"),
        ("a: b: c", "is not YAML"),
        ("seed: !!int x", "is not YAML"),
        ("seed: 1\nout: a\nseed: 2", "seed stands here twice"),
        ("repair: {steps: 1, steps: 2}", "steps stands here twice"),
        ("[" * 5000, "is not YAML"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_file_and_place(recipe, text, told):
    with pytest.raises(RessaError) as refused:
        recipe(text)
    line = str(refused.value)
    assert told in line
    assert "\n" not in line
    assert "recipe.yaml: " in line


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(RessaError, match=r"none\.yaml: cannot be read \(No such file"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(RessaError, match="cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(RessaError, match=r"bytes\.yaml: is not YAML"):
        read_recipe(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("text", ["2:4", "'2:4'", "4:8", "50%", "1:4"])
def test_a_pattern_needs_no_quotes(recipe, text):
    assert recipe(f"prune: {{sparsity: {text}}}").prune.sparsity == text.strip("'")
    assert recipe(f"prune:\n  vision: {text}\n").prune.vision == text.strip("'")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("1E-3", 0.001), ("1.5e-3", 0.0015), (".5", 0.5), ("2", 2.0), ("1.", 1.0)]
)
def test_a_number_may_be_written_as_people_write_numbers(recipe, text, value):
    assert recipe(f"repair: {{lr: {text}}}").repair.lr == value


def test_what_looks_like_a_number_or_a_date_may_be_a_name(recipe):
    assert recipe("out: 2026\nmodel: 1e-3").out == "2026"
    assert recipe("out: 2024-13-45").out == "2024-13-45"
    assert recipe("prune: {connector: 0, sparsity: 0.5}").prune == Prune(connector="0", sparsity="0.5")


def test_an_empty_section_has_the_defaults_and_a_missing_one_is_left_out(recipe):
    assert recipe("prune: {}") == Recipe(prune=Prune())
    assert Recipe().repair is None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_can_be_read_and_opens_with_its_command(path):
    assert isinstance(read_recipe(path), Recipe)
    assert path.read_text(encoding="utf-8").startswith("# ressa ")


def test_the_demo_is_shipped():
    demo = read_recipe(next(path for path in SHIPPED if path.name == "demo.yaml"))
    assert (demo.model, demo.data, demo.prune.method, demo.prune.sparsity) == ("demo", "emoji", "wanda", "2:4")
    assert demo.repair
    assert demo.evaluate


@pytest.mark.parametrize(("cls", "verb"), [(Prune, ressa.prune), (Repair, ressa.repair), (Evaluate, ressa.evaluate)])
def test_the_settings_are_arguments_of_the_verb_with_the_same_defaults(cls, verb):
    parameters = inspect.signature(verb).parameters
    for field in fields(cls):
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY, field.name
        assert parameters[field.name].default == field.default, field.name


@pytest.mark.parametrize("cls", [Prune, Repair, Evaluate])
def test_every_setting_has_a_default_that_is_allowed_and_is_explained(cls):
    assert build(cls, {}, "here") == cls()
    for field in fields(cls):
        assert field.default is not MISSING
        assert field.metadata["help"].strip()


def test_a_method_may_be_a_mapping_with_its_parameters(recipe):
    assert recipe("prune: {method: {name: ria, power: 0.3}}").prune.method == "ria(power=0.3)"
    with pytest.raises(RessaError, match=r"unknown parameter of ria 'pwr': did you mean 'power'"):
        recipe("prune: {method: {name: ria, pwr: 0.3}}")


def test_grey_pictures_and_threads_are_settings_of_a_recipe_too(recipe):
    told = recipe("evaluate: {grey: true}\nruntime: {threads: 1}")
    assert told.evaluate.grey
    assert told.runtime.threads == 1
