"""Every task from a miniature of its official files, end to end through the command line on the embedded model."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from reading import read

import ressa
import ressa.demo
from ressa import cli, tasks
from ressa.evaluation.overrides import generation
from ressa.evaluation.settings import Evaluate
from ressa.model.load import load
from ressa.tasks.base import asked, candidates, family, options
from ressa.tasks.metrics import coco
from ressa.tasks.metrics.ptb import words

pytestmark = [pytest.mark.formats, pytest.mark.usefixtures("own_cache")]

PLAIN = ["--prompt", "{question}"]  # the embedded model knows no other
PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
needs_demo = pytest.mark.skipif(not ressa.demo.EMBEDDED.is_dir(), reason="the embedded model is not there yet")


@pytest.fixture
def ressa_evaluate(tmp_path, monkeypatch, capsys):
    """Runs `ressa evaluate demo --task NAME ...`: (scores, rows of answers.jsonl by id, what was printed).

    In float32, whose rounding turns none of these answers on any processor; bfloat16's does.
    """

    def run(name: str, data: Path, *more: str) -> tuple[dict, dict[str, dict], str]:
        out = tmp_path / "out"
        words = ["ressa", "evaluate", "demo", "--task", name, "--data", str(data), "--out", str(out)]
        words += ["--dtype", "float32", *more]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert (ended.value.code or 0) == 0, told.err
        rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
        return json.loads((out / "scores.json").read_text()), {row["id"]: row for row in rows}, told.out

    return run


# ---- scored end to end -----------------------------------------------------------------------------------------------


@needs_demo
@pytest.mark.parametrize("name", ["folder", "vqav2", "okvqa", "gqa", "textvqa"])
def test_questions_are_scored_as_counted_by_hand(name, mini, drawn, ressa_evaluate):
    scores, rows, printed = ressa_evaluate(name, mini(name), *PLAIN)
    right = [scene_answer for scene in drawn for scene_answer in scene.questions]
    right = [scene.questions[0] for scene in drawn] if name == "textvqa" else right
    assert [row["question"] for row in rows.values()] == [question for question, _ in right]
    hits = [row["answer"] == answer for row, (_, answer) in zip(rows.values(), right, strict=True)]
    assert sum(hits) >= len(hits) - 2  # the embedded model knows these
    assert scores["exact_match"] == pytest.approx(sum(hits) / len(hits))
    assert scores[scores["metrics"][0]] == pytest.approx(sum(hits) / len(hits))  # 6 or 9 of 10 people agree: 1
    low, high = scores["intervals"][scores["metrics"][0]]
    assert low <= scores[scores["metrics"][0]] <= high
    assert f"({len(hits)} questions" in printed


@needs_demo
def test_vqav2_is_broken_down_by_the_files_own_types(mini, ressa_evaluate):
    scores, _, _ = ressa_evaluate("vqav2", mini("vqav2"), *PLAIN)
    assert {kind: part["n"] for kind, part in scores["by_kind"].items()} == {"other": 4, "yes/no": 4, "number": 4}
    assert set(scores["by"]) == {"answer type", "question type"}
    assert set(scores["by"]["question type"]) == {"what is", "is there a", "how many"}


@needs_demo
@pytest.mark.parametrize("name", ["nocaps", "coco", "flickr30k"])
def test_captions_are_scored_by_cider_and_bleu_and_say_what_is_missing(name, mini, drawn, ressa_evaluate, monkeypatch):
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    scores, rows, printed = ressa_evaluate(name, mini(name), "--prompt", "A short image caption.")
    assert len(rows) == (4 if name == "nocaps" else 3)
    told = [words(scene.caption) for scene in drawn][-3:]
    hits = [words(row["answer"]) == caption for row, caption in zip([*rows.values()][-3:], told, strict=True)]
    assert sum(hits) >= 2  # the embedded model describes most scenes word by word
    assert scores["CIDEr"] > 4
    assert scores["BLEU_4"] > 0.4
    assert set(scores["missing"]) == {"METEOR", "ROUGE_L", "SPICE"}
    assert "not computed: SPICE: pycocoevalcap is not installed: pip install 'ressa[captions]'" in printed
    if name == "nocaps":
        assert {kind: part["n"] for kind, part in scores["by_kind"].items()} == {
            "in-domain": 2,
            "near-domain": 1,
            "out-domain": 1,
        }


@needs_demo
@pytest.mark.parametrize("name", ["nocaps", "coco", "flickr30k"])
def test_captions_that_are_those_of_the_file_score_highest(name, mini, drawn, ressa_evaluate, monkeypatch):
    def recite(net, processor, records, *more):
        return {r.id: scene.caption for r, scene in zip(records, drawn[-len(records) :], strict=True)}

    monkeypatch.setattr(sys.modules["ressa.evaluation.ask"], "answers", recite)
    scores, _, _ = ressa_evaluate(name, mini(name))
    assert scores["CIDEr"] > 6
    assert scores["BLEU_4"] == pytest.approx(1)


@needs_demo
def test_pictures_find_their_captions_and_captions_their_pictures(mini, ressa_evaluate):
    scores, rows, _ = ressa_evaluate("flickr30k-retrieval", mini("flickr30k-retrieval"))
    assert (scores["TR@1"], scores["IR@1"], scores["IR@10"]) == (1, 1, 1)
    assert {kind: part["n"] for kind, part in scores["by_kind"].items()} == {"text retrieval": 3, "image retrieval": 6}
    assert {row["answer"] for row in rows.values()} == {"1"}
    assert scores["settings"]["retrieval"].startswith("log-probability")


@needs_demo
def test_pope_counts_yes_and_no_in_each_of_its_three_files(mini, ressa_evaluate):
    scores, rows, _ = ressa_evaluate("pope", mini("pope"), *PLAIN)
    assert [scores[name] for name in ("f1", "accuracy", "precision", "recall", "yes_ratio")] == [1, 1, 1, 1, 0.5]
    assert set(scores["by_kind"]) == {"random", "popular", "adversarial"}
    assert list(rows) == ["adversarial-1", "adversarial-2", "popular-1", "popular-2", "random-1", "random-2"]


@needs_demo
def test_pope_given_one_file_by_a_relative_path_asks_that_one(mini, ressa_evaluate, monkeypatch):
    monkeypatch.chdir(mini("pope").parent)
    scores, rows, _ = ressa_evaluate("pope", Path("pope") / "coco_pope_popular.json", *PLAIN)
    assert list(rows) == ["popular-1", "popular-2"]
    assert set(scores["by_kind"]) == {"popular"}


@needs_demo
def test_a_recipe_of_a_benchmark_ends_in_its_tables(mini, tmp_path, monkeypatch, capsys):
    pope = {"task": "pope", "prompt": "{question}", "limit": 2}
    told = {"model": "demo", "data": str(mini("pope")), "out": str(tmp_path / "out"), "evaluate": pope}
    (tmp_path / "recipe.yaml").write_text(json.dumps(told), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["ressa", "run", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert (ended.value.code or 0) == 0, printed.err
    assert "f1 by kind of question" in printed.out
    assert not (tmp_path / "out" / "answers.png").exists()


@needs_demo
@pytest.mark.parametrize("name", ["scienceqa", "mmbench", "mmmu"])
@pytest.mark.parametrize("way", ["likelihood", "generation"])
def test_multiple_choice_by_likelihood_and_by_generation(name, way, mini, ressa_evaluate):
    scores, rows, _ = ressa_evaluate(name, mini(name), "--choices", way, *PLAIN)
    main = scores["metrics"][0]
    assert scores[main] >= 0.66  # "{question}" lists no options: the right one's words are what the model would say
    if way == "likelihood":
        assert all(row["answer"] in row["choices"] for row in rows.values() if "choices" in row)
    assert ("choices" in scores["settings"]) == (way == "likelihood")
    if name == "scienceqa":
        assert scores["left_out"] == {"no picture (ScienceQA-IMG asks about pictures)": 1}
        assert set(scores["by"]) == {"subject", "grade"}
    if name == "mmbench":
        assert set(scores["by_kind"]) == {"object_localization"}
        assert scores["accuracy"] >= scores["circular_accuracy"]
    if name == "mmmu":
        assert scores["left_out"] == {"several pictures": 2}
        assert set(scores["by"]["question type"]) == {"multiple-choice", "open"}


@needs_demo
def test_perplexity_and_divergence_come_with_any_task(mini, ressa_evaluate):
    scores, rows, printed = ressa_evaluate("gqa", mini("gqa"), *PLAIN, "--against", "demo", "--limit", "3")
    assert scores["kl"] == 0
    assert scores["perplexity"] == scores["dense_perplexity"] > 1
    assert scores["by_kind"][next(iter(scores["by_kind"]))]["perplexity"] > 1
    assert {"kl", "nll", "tokens"} <= set(next(iter(rows.values())))
    assert "perplexity of the reference answers" in printed


@needs_demo
def test_two_models_are_compared_on_the_same_questions(mini, ressa_evaluate, tmp_path):
    data = mini("folder")
    ressa_evaluate("folder", data)
    (tmp_path / "out").rename(tmp_path / "seeing")
    scores, _, printed = ressa_evaluate("folder", data, "--grey", "--versus", str(tmp_path / "seeing"))
    told = scores["versus"]["exact_match"]
    assert told["difference"] < -0.3
    assert told["interval"][0] <= told["difference"] <= told["interval"][1] < 0
    assert told["p"] < 0.05
    assert f"exact match beside {tmp_path}/seeing: -" in printed


# ---- how each family is asked ----------------------------------------------------------------------------------------


def test_each_family_is_asked_in_its_own_words(drawn, mini):
    sample = read("scienceqa", mini("scienceqa")).samples[0]
    question, hint = sample.record.question, "Look closely."
    told = {kind: asked(sample, tasks.get("scienceqa").asks[kind], kind).question for kind in ("blip", "chat")}
    first, second, third = sample.choices
    assert told["blip"] == f"Context: {hint} {question} Options: (a) {first} (b) {second} (c) {third}"
    assert told["chat"] == (
        f"{hint}\n{question}\nA. {first}\nB. {second}\nC. {third}\n"
        "Answer with the option's letter from the given choices directly."
    )
    caption = read("coco", mini("coco")).samples[0]
    assert asked(caption, tasks.get("coco").asks["blip"], "blip").question is None  # "a photo of", as BLIP was taught


@pytest.mark.parametrize(
    ("fixture", "kind"),
    [
        ("llava_folder", "chat"),
        ("causal_lm_folder", "chat"),
        ("blip2_opt_folder", "blip"),
        ("blip2_t5_folder", "blip"),
        ("instructblip_t5_folder", "blip"),
        ("instructblip_llama_folder", "vicuna"),
    ],
)
def test_families_are_told_apart(fixture, kind, request):
    model, processor = load(request.getfixturevalue(fixture))
    assert family(processor, model.config) == kind


def test_generation_is_as_in_the_papers_configs_unless_the_user_says_otherwise():
    vqa, captions = tasks.get("vqav2"), tasks.get("nocaps")
    beams = {"do_sample": False, "num_beams": 5, "max_new_tokens": 10, "min_new_tokens": 1, "length_penalty": -1.0}
    assert vqa.how["blip"].settings() == vqa.how["vicuna"].settings() == beams
    assert (captions.how["blip"].max_new_tokens, captions.how["blip"].min_new_tokens) == (30, 8)
    assert (captions.how["vicuna"].max_new_tokens, captions.how["vicuna"].min_new_tokens) == (80, 10)
    mine = generation(Evaluate(num_beams=1, max_new_tokens=4), vqa, "blip").settings()
    assert mine == {"do_sample": False, "num_beams": 1, "max_new_tokens": 4, "min_new_tokens": 1}


@pytest.mark.parametrize("fixture", ["blip2_t5_folder", "instructblip_t5_folder", "instructblip_llama_folder"])
def test_blip_models_are_asked_with_beams_and_their_settings_are_told(fixture, request, mini):
    told = ressa.evaluate(request.getfixturevalue(fixture), data=mini("textvqa"), task="textvqa", limit=2)
    assert told["settings"]["num_beams"] == 5
    assert told["settings"]["length_penalty"] == -1
    questions = [sample.record.question for sample in read("textvqa", mini("textvqa")).samples]
    assert told["prompt"] in [f"Question: {question} Short answer:" for question in questions]


def test_options_that_were_not_shown_are_answered_in_their_own_words(mini):
    sample = read("mmbench", mini("mmbench")).samples[0]
    assert candidates(sample, "chat", "{question}\n{options}") == ("A", "B")
    assert candidates(sample, "chat", "{question}") == candidates(sample, "blip", "{options}") == sample.choices
    assert options(["x", "y"], "blip") == "(a) x (b) y"


def test_the_recipe_knows_the_tasks_by_the_same_names():
    assert tuple(tasks.TASKS) == tuple(task.name for task in tasks.TASKS.values())
    words = next(f.metadata["help"] for f in fields(Evaluate) if f.name == "task")
    assert all(name in words for name in tasks.TASKS)


def with_table(text: str) -> str:
    """The page of tasks with its table as it should be; `make tables` writes it."""
    begin, end = "<!-- tasks -->\n", "<!-- end of tasks -->"
    rows = ["| `--task` | | files (or hub dataset) | split | scores |", "|---|---|---|---|---|"]
    for name, task in tasks.TASKS.items():
        hub = f"; or `{task.hub}`" if task.hub else ""
        rows.append(f"| `{name}` | {task.title} | {task.files}{hub} | `{task.split}` | {task.metrics} |")
    before, _, rest = text.partition(begin)
    return before + begin + "\n".join(rows) + "\n" + end + rest.partition(end)[2]


def test_the_table_of_tasks_says_what_the_code_says():
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text, "docs/tasks.md is out of date; run: make tables"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
