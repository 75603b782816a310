"""Every task from a miniature of its official files, end to end through the command line on the embedded model."""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import fields
from pathlib import Path

import datasets
import pytest

import miniatures
import ressa
import ressa.demo
from ressa import cli, tasks
from ressa.data.embedded import ImageText
from ressa.data.tables import is_table
from ressa.errors import RessaError
from ressa.evaluation import verb as score
from ressa.evaluation.overrides import generation
from ressa.evaluation.settings import Evaluate
from ressa.model.load import load
from ressa.tasks.base import Source, asked, candidates, family, options
from ressa.tasks.files import Pictures
from ressa.tasks.files import rows as table_rows
from ressa.tasks.metrics import coco
from ressa.tasks.metrics.ptb import words

pytestmark = pytest.mark.formats

PLAIN = ["--prompt", "{question}"]  # the embedded model knows no other
PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
needs_demo = pytest.mark.skipif(not ressa.demo.EMBEDDED.is_dir(), reason="the embedded model is not there yet")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return miniatures.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


@pytest.fixture
def mini(drawn, tmp_path):
    """mini(task): the folder of a task's miniature."""
    return lambda name: miniatures.BUILDERS[name](tmp_path / name, drawn)


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


def read(name: str, data: Path | str, split: str | None = None) -> tasks.base.Reading:
    return tasks.get(name).read(Source(data, split or tasks.get(name).split))


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


# ---- official files, other forms -------------------------------------------------------------------------------------


def test_flickrs_token_file_knows_no_splits_so_a_list_of_names_makes_one(drawn, tmp_path):
    root = miniatures.flickr30k_tokens(tmp_path / "tokens", drawn)
    assert [s.record.id for s in read("flickr30k", root).samples] == ["1.jpg", "2.jpg"]
    (root / "test.txt").unlink()
    assert len(read("flickr30k", root / "results_20130124.token").samples) == 4
    assert len(read("flickr30k", root).samples[0].record.references) == 5


def test_hub_datasets_are_read_from_their_parquet_files(drawn, tmp_path):
    rows = [
        {
            "question_id": i,
            "question": scene.questions[0][0],
            "answers": [{"answer": scene.questions[0][1], "answer_confidence": "yes", "answer_id": 1}],
            "answer_type": "other",
            "image": str(scene.picture),
        }
        for i, scene in enumerate(drawn)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    for source in (tmp_path, table, datasets.DatasetDict({"validation": table})):
        samples = tasks.get("vqav2").read(Source(source, "val")).samples
        assert [s.record.references for s in samples] == [(scene.questions[0][1],) for scene in drawn]
        assert samples[0].record.open_image().getbbox() is not None
    with pytest.raises(RessaError, match=r"unknown split of .* 'test'.*\(known: validation\)"):
        read("vqav2", tmp_path, "test")


def test_a_hub_name_is_loaded_by_its_default_config_or_by_all_that_make_up_the_whole(monkeypatch):
    loaded = []

    def load_dataset(name, config, split):
        loaded.append((name, config, split))
        return datasets.Dataset.from_list([{"id": config}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["dev", "validation"])
    for configs in (["Full", "default"], ["Art", "Biology"]):
        monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, configs=configs: configs)
        rows = list(table_rows(Source("some/set", "val"), ("id",)))
    assert loaded == [("some/set", config, "validation") for config in ("default", "Art", "Biology")]
    assert [raw["id"] for raw, _ in rows] == ["Art", "Biology"]
    with pytest.raises(RessaError, match=r"unknown split of some/set 'test': \(known: dev, validation\)"):
        list(table_rows(Source("some/set", "test")))


def test_pictures_may_lie_elsewhere(mini, tmp_path):
    data = mini("gqa")
    (data / "images").rename(tmp_path / "elsewhere")
    task = tasks.get("gqa")
    with pytest.raises(RessaError, match=r"testdev_balanced_questions\.json: record .201300.: image .* does not exist"):
        task.read(Source(data, task.split))
    assert len(task.read(Source(data, task.split, tmp_path / "elsewhere")).samples) == 12


@pytest.mark.parametrize(("file", "told"), [("gone.jpg", "'gone.jpg' does not exist in"), ("", "'' is not a file")])
def test_a_picture_that_is_not_there_is_told_of_by_the_name_that_its_record_has(file, told, mini):
    pictures = Pictures(Source(mini("coco"), "test"), "val2014")
    with pytest.raises(RessaError, match=f"^x.json: record 1: image {told}"):
        pictures.find("x.json: record 1", file)


def test_a_question_without_an_answer_is_left_out_and_counted(mini):
    root = mini("gqa")
    whole = read("gqa", root)
    change(root / "testdev_balanced_questions.json", '"answer": "crying face"', '"answer": " "')
    reading = read("gqa", root)
    assert reading.samples == whole.samples[1:]
    assert reading.left_out == {"empty text": 1}


def test_a_split_that_the_file_does_not_know_is_refused_with_those_it_knows(mini):
    with pytest.raises(RessaError, match=r"no image of the split dev \(splits there: .*test"):
        read("coco", mini("coco"), "dev")


def test_a_limit_keeps_rotated_options_together(mini):
    chosen = score._chosen(read("mmbench", mini("mmbench")).samples, 2, grey=False)
    assert len(chosen) == 4
    assert len({sample.group for sample in chosen}) == 2


# ---- malformed files -------------------------------------------------------------------------------------------------


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
MALFORMED = [
    ("vqav2", QUESTIONS, '"question": "What', '"query": "What', r'questions\[0\]: field "question" is missing'),
    (
        "vqav2",
        QUESTIONS,
        '"image_id": 0',
        '"image_id": "x"',
        r'questions\[0\]: field "image_id" must be a whole number',
    ),
    ("vqav2", QUESTIONS, '"question_id": 1000', '"question_id": 7', r'questions\[3\]: field "question_id" is 7, which'),
    ("vqav2", QUESTIONS, '"questions": [', '"questions": [[], ', r"questions\[0\]: must be an object"),
    ("vqav2", QUESTIONS, '"questions": [', '"items": [', r'questions\.json: field "questions" is missing'),
    ("vqav2", QUESTIONS, "{", "{{", r"questions\.json:1: malformed JSON after record 12"),
    ("vqav2", ANNOTATIONS, '{"answer": "crying face"', '{"answer": 5', r'\[0\]: field "answers\[0\]\.answer" must be'),
    ("okvqa", "mscoco_val2014_annotations.json", '"answers": [', '"answer": [', r'annotations\[0\]: field "answers"'),
    (
        "gqa",
        "testdev_balanced_questions.json",
        '"imageId"',
        '"image"',
        r"record '201300': field \"imageId\" is",
    ),
    ("textvqa", "TextVQA_0.5.1_val.json", '"answers": [', '"replies": [', r'data\[0\]: field "answers" is missing'),
    ("nocaps", "nocaps_val_4500_captions.json", '"file_name"', '"file"', r'images\[0\]: field "file_name" is missing'),
    (
        "nocaps",
        "nocaps_val_4500_captions.json",
        '"id": 3, "open',
        '"id": 9, "open',
        r'images\[3\]: field "id" is 9, which',
    ),
    ("coco", "dataset_coco.json", '"split": "test"', '"part": "test"', r'images\[1\]: field "split" is missing'),
    (
        "flickr30k",
        "dataset_flickr30k.json",
        '"filename": "000000000001',
        '"file": "000',
        r'images\[1\]: field "filename"',
    ),
    (
        "flickr30k",
        "dataset_flickr30k.json",
        '"raw": "a banjo',
        '"text": "a banjo',
        r'\[1\]: sentences\[0\]: field "raw"',
    ),
    (
        "pope",
        "coco_pope_random.json",
        '"label": "yes"',
        '"label": "maybe"',
        r'random\.json:1: field "label" must be yes',
    ),
    ("pope", "coco_pope_popular.json", '"text"', '"question"', r'popular\.json:1: field "text" is missing'),
    ("pope", "coco_pope_popular.json", "{", "", r"popular\.json:1: malformed JSON at column"),
    (
        "scienceqa",
        "problems.json",
        '"answer": 0',
        '"answer": 9',
        r'record .\d.: field "answer" must be the index of',
    ),
    ("scienceqa", "pid_splits.json", '"test"', '"tset"', r'pid_splits\.json: field "test" is missing'),
    ("scienceqa", "pid_splits.json", '"3"', '"77"', r"pid_splits\.json: test\[2\] is 77, which"),
    ("mmbench", "mmbench_dev_20230712.tsv", "\tanswer\t", "\tlabel\t", r'\.tsv:1: column "answer" is missing'),
    ("mmbench", "mmbench_dev_20230712.tsv", "\tA\tobject", "\tE\tobject", r'\.tsv:2: field "answer" must be one of AB'),
    ("mmbench", "mmbench_dev_20230712.tsv", "\t\tdev\n", "\n", r"\.tsv:2: has not as many fields as line 1"),
]


@pytest.mark.parametrize(("name", "file", "old", "new", "told"), MALFORMED)
def test_a_malformed_file_is_told_of_with_its_place_and_field(name, file, old, new, told, mini):
    root = mini(name)
    change(root / file, old, new)
    with pytest.raises(RessaError, match=told) as error:
        read(name, root)
    assert str(error.value).startswith(str(root))
    assert "\n" not in str(error.value)


def test_a_malformed_row_of_a_token_file_is_told_of_by_its_line(drawn, tmp_path):
    root = miniatures.flickr30k_tokens(tmp_path / "tokens", drawn)
    change(root / "results_20130124.token", "0.jpg#1\t", "0.jpg#1 ")
    with pytest.raises(RessaError, match=r"\.token:2: must be NAME\.jpg#NUMBER, a tab and a caption"):
        read("flickr30k", root)


def test_a_malformed_table_is_told_of_by_its_row(mini, tmp_path):
    path = mini("mmmu") / "Biology" / "validation-00000-of-00001.parquet"
    table = datasets.Dataset.from_parquet(str(path))
    rows = [row | {"options": "none"} if i == 3 else row for i, row in enumerate(table.to_list())]
    datasets.Dataset.from_list(rows, features=table.features).to_parquet(path)
    with pytest.raises(RessaError, match=r'mmmu:7: field "options" must be a list of options'):
        read("mmmu", path.parents[1])
    datasets.Dataset.from_list([{"id": "a"}]).to_parquet(path)
    with pytest.raises(RessaError, match=r'column "question" is missing'):
        read("mmmu", path)


@pytest.mark.parametrize("name", sorted(set(tasks.TASKS) - {"folder"}))
def test_a_folder_without_the_files_is_told_what_was_looked_for(name, tmp_path):
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(RessaError, match=f"^{tmp_path}: no .*"):
        read(name, tmp_path)
    with pytest.raises(RessaError, match=r"no such data folder|no split|no \*\.parquet"):
        read(name, tmp_path / "nowhere")


def test_a_picture_that_is_not_base64_is_told_of_by_its_line():
    picture = ImageText("not base64!", "x.tsv:7")
    with pytest.raises(RessaError, match=r'x\.tsv:7: field "image" is not base64'):
        picture.open()
    with pytest.raises(RessaError, match=r'x\.tsv:7: field "image" cannot be read'):
        ImageText(base64.b64encode(b"no picture").decode(), "x.tsv:7").open()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task", "vqa2"], "unknown task 'vqa2': did you mean"),
        (["--choices", "guess", "--task", "mmbench"], "unknown choices 'guess'"),
        (["--choices", "likelihood", "--task", "vqav2"], "choices: vqav2 is no multiple choice"),
        (["--prompt", "{querstion}"], "prompt: may hold {question}, {options} and {hint}, not: {querstion}"),
        (["--num-beams", "0"], "num_beams: 0 must be at least 1"),
        (["--versus", "/nowhere"], "/nowhere: no answers.jsonl there"),
    ],
)
def test_wrong_wishes_are_refused_before_a_model_is_loaded(words, told, tiny_data, monkeypatch, capsys):
    monkeypatch.setattr(score, "load_to_ask", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(sys, "argv", ["ressa", "evaluate", "demo", "--data", str(tiny_data), *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_two_records_of_one_name_are_refused(tmp_path, drawn, mini):
    root = mini("vqav2")
    change(root / QUESTIONS, '"question_id": 1,', '"question_id": 0,')
    with pytest.raises(RessaError, match="two records are called '0'"):
        ressa.evaluate("demo", data=root, task="vqav2")


def test_data_that_is_a_single_file_of_the_pair_finds_the_other(mini):
    assert len(read("vqav2", mini("vqav2") / QUESTIONS).samples) == 12


def test_what_is_no_table_is_no_hub_name_either():
    assert is_table("lmms-lab/VQAv2")
    assert not is_table("./VQAv2")


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("pope", {"split": "dev"}, r"POPE's files have no splits: leave split \('dev'\) out"),
        ("flickr30k-retrieval", {"num_beams": 2}, "num_beams: flickr30k-retrieval ranks by likelihood"),
        (
            "scienceqa",
            {"choices": "likelihood", "max_new_tokens": 4},
            "max_new_tokens: scienceqa chooses by",
        ),
    ],
)
def test_what_a_task_would_not_heed_is_refused(name, options, told, mini, llava_folder):
    with pytest.raises(RessaError, match=told):
        ressa.evaluate(llava_folder, data=mini(name), task=name, **options)


def test_images_beside_a_table_are_refused(drawn, tmp_path, llava_folder):
    table = datasets.Dataset.from_dict({"question": ["?"], "answer": ["yes"], "image": [None], "question_id": ["1"]})
    table = table.cast_column("image", datasets.Image())
    with pytest.raises(RessaError, match="images: dataset has its pictures within its rows"):
        ressa.evaluate(llava_folder, data=table, task="pope", images=tmp_path)
