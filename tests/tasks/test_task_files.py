"""Official files of tasks: the other forms that they come in, and how what is wrong with them is told of."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import datasets
import pytest
from reading import read

import miniatures
import ressa
from ressa import cli, tasks
from ressa.data.embedded import ImageText
from ressa.data.tables import is_table
from ressa.errors import RessaError
from ressa.evaluation import verb as score
from ressa.tasks.base import Source
from ressa.tasks.files import Pictures
from ressa.tasks.files import rows as table_rows

pytestmark = [pytest.mark.formats, pytest.mark.usefixtures("own_cache")]


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
