"""The table of families: a row is a model that transformers knows, a field is read, nothing stands elsewhere."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

import ressa
from ressa import families
from ressa.data.prompts import prompt_text
from ressa.data.records import Record
from ressa.families import FAMILIES, PLAIN, Family
from ressa.model.load import load
from ressa.tasks import TASKS

SOURCE = Path(ressa.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
ELSEWHERE = {path: tree for path, tree in TREES.items() if path.name != "families.py"}
FROM_TABLE = re.compile(r"\b(family|known|families\.of\(.*\)|of_processor\(.*\))$")  # what a quirk is read of
FIELDS = [field.name for field in fields(Family)]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_row_is_a_model_that_transformers_knows_with_pictures(model_type):
    assert CONFIG_MAPPING[model_type] in AutoModelForImageTextToText._model_mapping
    assert FAMILIES[model_type] != PLAIN, "a row without a quirk"


def test_no_two_rows_share_a_processor_from_which_the_row_could_not_be_told():
    shared = Counter(PROCESSOR_MAPPING_NAMES[model_type] for model_type in FAMILIES)
    assert [name for name, count in shared.items() if count > 1] == []


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_set_by_a_row_read_by_the_code_and_explained_below_it(name):
    assert any(getattr(family, name) != getattr(PLAIN, name) for family in FAMILIES.values())
    read = (node for tree in ELSEWHERE.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    assert any(node.attr == name and FROM_TABLE.search(ast.unparse(node.value)) for node in read)
    table = next(node for node in TREES[SOURCE / "families.py"].body if getattr(node, "name", "") == "Family")
    at = next(i for i, node in enumerate(table.body) if isinstance(node, ast.AnnAssign) and node.target.id == name)
    assert isinstance(table.body[at + 1], ast.Expr)


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_other_file_names_a_family_or_a_processor(path):
    names = FAMILIES.keys() | {PROCESSOR_MAPPING_NAMES[name] for name in FAMILIES}
    code = {node.value for node in ast.walk(ELSEWHERE[path]) if isinstance(node, ast.Constant)}
    assert not code & names


@pytest.mark.parametrize("fixture", ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama"])
def test_config_and_processor_tell_the_same_family(fixture, request):
    model, processor = load(request.getfixturevalue(f"{fixture}_folder"))
    assert families.of_processor(processor) is families.of(model.config) is FAMILIES[model.config.model_type]


def test_what_the_table_does_not_name_has_no_quirks(causal_lm_folder):
    model, tokenizer = load(causal_lm_folder)
    assert families.of(model.config) is families.of_processor(tokenizer) is families.of(object()) is PLAIN


@pytest.mark.parametrize("model_type", FAMILIES)
def test_wordings_are_those_that_tasks_have(model_type):
    family = FAMILIES[model_type]
    for task in TASKS.values():
        assert family.wording in task.asks
        assert {family.wording, family.decoder_wording or family.wording} <= task.how.keys()
    assert hasattr(transformers, family.matcher or "AutoModel")


def test_a_new_row_changes_how_its_models_are_asked(llava_folder, monkeypatch):
    model, processor = load(llava_folder)
    record = Record("a", "What is it?", ("yes",))
    before = prompt_text(processor, record)
    monkeypatch.setitem(FAMILIES, "llava", Family(question="Q: {} A:"))
    assert before != prompt_text(processor, record) == "Q: What is it? A:"
    assert families.of(model.config).joins == ""
