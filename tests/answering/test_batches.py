"""Answers depend neither on batches nor on processes nor on kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import forked
import ressa
import ressa.demo
from ressa.answering import cache as caching
from ressa.answering import generate as generating
from ressa.answering.generate import Generation, Margin, answers, generate, tie
from ressa.data.emoji import write
from ressa.data.records import read_records
from ressa.evaluation.choose import choices, likelihood
from ressa.model.load import load

_HAS_DEMO = pytest.mark.skipif(not ressa.demo.EMBEDDED.is_dir(), reason="the embedded model is not there yet")
pytestmark = [pytest.mark.formats, _HAS_DEMO]
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("emoji")
    write(root, train=1, validation=1, test=30)
    (root / "few.jsonl").write_text("".join((root / "test.jsonl").read_text().splitlines(keepends=True)[:24]))
    return root


@pytest.fixture(scope="module")
def demo():
    return load("demo")


def evaluate_in_a_process(data: Path, split: str, out: Path, *more: str, launch: tuple[str, ...] = ()) -> list[str]:
    words = [sys.executable, *launch, "-m", "ressa.cli", "evaluate", "demo", "--data", str(data), "--split", split]
    return [*words, "--out", str(out), *more]


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_the_same_one_by_one_and_in_batches(emoji, dtype):
    model, processor = load("demo", dtype=dtype)
    records = read_records(emoji, "test")[:40]
    one_by_one = answers(model, processor, records, batch_size=1)
    assert len(set(one_by_one.values())) > 10
    for size in (8, 32):
        assert answers(model, processor, records, batch_size=size) == one_by_one


def test_what_rounding_could_decide_is_asked_again_alone(demo, emoji, monkeypatch):
    model, processor = demo
    records, sizes, real = read_records(emoji, "test")[:6], [], generating._generate

    def spy(model, processor, records, how, watch):
        sizes.append(len(records))
        return real(model, processor, records, how, watch)

    monkeypatch.setattr(generating, "_generate", spy)
    monkeypatch.setattr(generating, "tie", lambda dtype: 0.0)
    generate(model, processor, records)
    monkeypatch.setattr(generating, "tie", lambda dtype: 1e9)
    generate(model, processor, records)
    assert sizes == [6, 6, 1, 1, 1, 1, 1, 1]
    generate(model, processor, records, Generation(num_beams=2))  # beams are not watched
    assert sizes[8:] == [6]


def test_a_margin_is_the_distance_of_the_best_two_words_until_the_end_of_the_answer():
    watch = Margin()
    ids = torch.zeros(2, 1, dtype=torch.long)
    for scores in ([[4.0, 2.0, 0.0], [0.1, 0.0, 0.3]], [[8.0, -8.0, 7.0], [9.0, 9.0, 0.0]]):
        assert watch(ids, torch.tensor(scores)).tolist() == torch.tensor(scores).tolist()
    assert watch.least(torch.tensor([2, 1])).tolist() == pytest.approx([0.125, 0.2])
    assert watch.least(torch.tensor([1, 2])).tolist() == pytest.approx([0.5, 0.0])
    assert tie(torch.bfloat16) > tie(torch.float16) > tie(torch.float32) > 0


def test_choices_are_the_same_one_by_one_and_in_batches(demo, emoji):
    records = read_records(emoji, "test")[:12]
    options = [(record.answers[0], "a cloud", "yes", "2") for record in records]
    alone, together = (choices(*demo, records, options, batch_size=size) for size in (1, 32))
    assert alone == together
    assert sum(alone[r.id] == r.answers[0] for r in records) >= 10


def test_a_likelihood_is_the_sum_over_the_answers_tokens(demo, emoji):
    record = read_records(emoji, "test")[0]
    total, mean = likelihood(*demo, [record])[0], likelihood(*demo, [record], mean=True)[0]
    tokens = len(demo[1].tokenizer(record.answers[0], add_special_tokens=False)["input_ids"]) + 1
    assert total == pytest.approx(mean * tokens)
    assert total < 0


# ---- processes -------------------------------------------------------------------------------------------------------


def test_two_processes_share_the_questions_and_give_the_same_answers(emoji, demo, tmp_path):
    words = ["evaluate", "demo", "--data", emoji, "--split", "few", "--out", tmp_path / "two", "--batch-size", "4"]
    both = forked.team(tmp_path, 2, forked.ressa, *words, "--json")
    assert [process.wait() for process in both] == [0, 0], [process.text() for process in both]
    (said,) = (process.text() for process in both if "{" in process.text())  # one of the two tells
    told = json.loads(said[said.index("{") :])
    one = ressa.evaluate(demo, data=emoji, split="few")
    rows = [json.loads(line) for line in (tmp_path / "two" / "answers.jsonl").read_text().splitlines()]
    assert {row["id"]: row["answer"] for row in rows} == one["answers"]
    for name in ("exact_match", "vqa_accuracy", "by_kind", "intervals"):
        assert told[name] == one[name]
    assert told["processes"] == 2
    shares = [(tmp_path / "two" / f"answers.cache{part}.jsonl").read_text().splitlines() for part in ("", ".1")]
    assert [len(share) for share in shares] == [12, 12]


def test_each_process_takes_its_share_and_reads_what_all_wrote(tmp_path, monkeypatch):
    asked: list[list[int]] = []
    said: list[str] = []  # by both processes

    def ask(batch):
        asked.append(batch)
        said[:] = keys
        return [str(i) for i in batch]

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(caching.parallel, "all_gather", lambda mine: mine | dict(zip(said, said, strict=True)))
    keys = [str(i) for i in range(7)]
    for rank in ("0", "1"):
        said.clear()
        monkeypatch.setenv("RANK", rank)
        assert caching.resumed(keys, keys, lambda todo: todo, ask, tmp_path / f"{rank}.jsonl", 2) == keys
    assert asked == [[0, 1], [4, 5], [2, 3], [6]]
    monkeypatch.setenv("WORLD_SIZE", "1")
    (tmp_path / "1.1.jsonl").rename(tmp_path / "0.1.jsonl")
    assert set(caching.read(tmp_path / "0.jsonl")) == set(keys)


# ---- kills -----------------------------------------------------------------------------------------------------------


def test_a_killed_evaluation_loses_no_finished_answer(emoji, demo, tmp_path, monkeypatch):
    cache = tmp_path / "out" / "answers.cache.jsonl"
    words = ["evaluate", "demo", "--data", emoji, "--split", "test", "--out", tmp_path / "out", "--batch-size", "1"]
    child = forked.command(tmp_path / "said.txt", *words)
    child.kill_when(lambda: cache.is_file() and cache.read_bytes().count(b"\n") >= 3)
    finished = caching.read(cache)
    assert 3 <= len(finished) < 100
    assert not (tmp_path / "out" / "scores.json").exists()
    with cache.open("ab") as file:
        file.write(b'{"key": "half a li')  # what a kill in the middle of a write leaves
    asked, real = [], generating.generate

    def spy(model, processor, records, how):
        asked.extend(record.id for record in records)
        return real(model, processor, records, how)

    monkeypatch.setattr(generating, "generate", spy)
    told = ressa.evaluate("demo", data=emoji, split="test", out=tmp_path / "out", batch_size=16)
    assert len(asked) == told["n"] - len(finished)
    assert finished.items() <= caching.read(cache).items()


# ---- a thousand ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_questions_get_the_same_answers_in_any_batches_and_processes(tmp_path):
    write(tmp_path / "data", train=1, validation=1, test=300)
    lines = (tmp_path / "data" / "test.jsonl").read_text().splitlines(keepends=True)[:1000]
    (tmp_path / "data" / "k.jsonl").write_text("".join(lines))
    runs = {size: ((), ("--batch-size", size)) for size in ("1", "8", "32")}
    runs["two processes"] = (tuple(LAUNCH), ("--batch-size", "8"))
    rows, scores = {}, {}
    for name, (launch, more) in runs.items():
        out = tmp_path / name
        words = evaluate_in_a_process(tmp_path / "data", "k", out, *more, launch=launch)
        subprocess.run(words, check=True, capture_output=True)
        rows[name] = (out / "answers.jsonl").read_text()
        told = json.loads((out / "scores.json").read_text())
        scores[name] = [told[key] for key in ("n", "exact_match", "vqa_accuracy", "by_kind", "intervals")]
        print(f"{name}: {told['n'] / told['seconds']:.1f} questions a second")
    assert scores["1"][0] == 1000
    assert all(row == rows["1"] for row in rows.values())
    assert all(score == scores["1"] for score in scores.values())
