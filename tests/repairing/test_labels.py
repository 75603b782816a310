"""The teacher's own answers as labels: what is learnt, what is left out, and that nothing is asked twice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_repair import prune_by_magnitude

import ressa
from ressa.answering import generate as generating
from ressa.data.emoji import write
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.repairing.labels import describing, labelled
from ressa.repairing.settings import Repair
from ressa.repairing.stages import Where

STEPS = {"teacher": "demo", "steps": 2, "batch_size": 4, "rank": 4, "dtype": "float32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes; `prompts.jsonl` has the first eight questions without answers, `bare.jsonl` four pictures alone."""
    folder = write(tmp_path_factory.mktemp("scenes") / "data", train=4, validation=1, test=1)
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    prompts = [{key: line[key] for key in ("image", "question")} for line in lines[:8]]
    pictures = [{"image": image} for image in sorted({line["image"] for line in lines})]
    for name, rows in (("prompts", prompts), ("bare", pictures)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """One cache for all: greedy answers do not change."""
    return tmp_path_factory.mktemp("said") / "labels.jsonl"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return prune_by_magnitude("demo", tmp_path_factory.mktemp("pruned") / "demo")


def label(records, cache, **changes):
    settings = {"labels": "teacher", "label_tokens": 100} | changes
    return labelled(records, "demo", Repair(**settings), Where("cpu", "float32"), cache)


def test_the_teacher_answers_questions_and_captions_pictures(data, tmp_path):
    records = read_records(data, "prompts+bare", unlabelled=True)
    found, told = label(records, tmp_path / "said.jsonl")
    assert [record.id for record in found] == [record.id for record in records]
    assert all(r.answers if r.question else " in the " in r.caption for r in found)
    assert (told["labels"]["asked"], told["labels"]["left_out"]) == (len(records), 0)


def test_missing_answers_alone_are_asked_for_and_what_the_data_say_stays(data, tmp_path):
    records = read_records(data, "prompts", unlabelled=True)[:3]
    own = replace(records[1], answers=("my own",))
    text = replace(records[2], question=None, image=None, answers=("plain text",))
    found, told = label([records[0], own, text], tmp_path / "said.jsonl", labels="missing")
    assert found[0].answers
    assert found[1:] == [own, text]
    assert told["labels"]["asked"] == 1
    found, _ = label([own, text], tmp_path / "said.jsonl", labels="teacher")
    assert found[0].answers != ("my own",)
    assert found[1] == text


def test_a_share_of_the_questions_becomes_captions_of_the_teacher(data, tmp_path):
    records = read_records(data, "train+train_captions")
    asked = sum(record.question is not None for record in records)
    found = describing(records, 0.25, 0)
    changed = [(old, new) for old, new in zip(records, found, strict=True) if old != new]
    assert len(changed) == round(asked / 4)
    assert all((new.question, new.references, new.image) == (None, (), old.image) for old, new in changed)
    assert describing(records, 0.25, 1) != found == describing(records, 0.25, 0)
    assert describing(records, 0, 0) == records
    taught, told = label(found[:6], tmp_path / "said.jsonl", labels="data")
    assert told.get("labels", {"asked": 0})["asked"] == sum(
        old != new for old, new in zip(records[:6], found, strict=False)
    )
    assert all(record.references for record in taught)


def test_answers_that_do_not_end_in_time_are_left_out(data, tmp_path):
    questions, pictures = (read_records(data, split, unlabelled=True) for split in ("prompts", "bare"))
    found, told = label([*questions, *pictures], tmp_path / "said.jsonl", label_tokens=8)
    assert {record.id for record in found} <= {record.id for record in questions}
    assert told["labels"]["left_out"] == len(questions) + len(pictures) - len(found) > 0
    with pytest.raises(RessaError, match="raise label_tokens"):
        label(pictures, tmp_path / "said.jsonl", label_tokens=8)


def test_an_answer_that_was_given_is_not_asked_for_again(data, tmp_path, monkeypatch):
    records = read_records(data, "prompts", unlabelled=True)
    first, _ = label(records[:5], tmp_path / "said.jsonl")
    asked, generate = [], generating.generate
    monkeypatch.setattr(generating, "generate", lambda *given, **how: asked.extend(given[2]) or generate(*given, **how))
    again, _ = label(records, tmp_path / "said.jsonl")
    assert again[:5] == first
    assert [record.question for record in sorted(asked, key=lambda r: r.id)] == [r.question for r in records[5:]]


def test_repair_without_labels_is_repair_on_what_the_teacher_says(pruned, data, tmp_path):
    told = ressa.repair(pruned, tmp_path / "free", data=data, split="prompts", labels="teacher", **STEPS)
    assert told["labels"]["asked"] == 8
    records, _ = label(read_records(data, "prompts", unlabelled=True), tmp_path / "said.jsonl", label_tokens=128)
    lines = [json.loads(line) for line in (data / "prompts.jsonl").read_text().splitlines()]
    rows = [line | {"answer": record.target} for line, record in zip(lines, records, strict=True)]
    (data / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ressa.repair(pruned, tmp_path / "told", data=data, split="said", **STEPS)
    free, taught = (load_file(tmp_path / name / "model.safetensors") for name in ("free", "told"))
    assert all(torch.equal(free[name], taught[name]) for name in free)
    assert not list(tmp_path.glob(".free*"))


def test_the_answers_lie_with_the_cache_of_the_teacher(pruned, data, tmp_path, monkeypatch):
    where = {"data": data, "split": "prompts+bare:0.5", "samples": 6, "labels": "teacher", **STEPS}
    ressa.repair(pruned, tmp_path / "one", teacher_cache=tmp_path / "said", **where)
    assert len((tmp_path / "said" / "labels.jsonl").read_text().splitlines()) == 6
    monkeypatch.setattr(generating, "generate", None)
    ressa.repair(pruned, tmp_path / "two", teacher_cache=tmp_path / "said", **where)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
