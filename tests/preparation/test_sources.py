"""Official data sets in small: each read as it is published, each fault named with file, record and field."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter

import datasets
import huggingface_hub
import pytest

import official
from official import lines, prepare, refusal
from ressa import tasks
from ressa.data.records import read_records
from ressa.preparation.sources import SOURCES
from ressa.tasks.base import Source

pytestmark = pytest.mark.usefixtures("datasets_cache")


# ---- each source in its publisher's format ---------------------------------------------------------------------------


def test_coco_captions_keep_karpathys_splits_and_read_pictures_from_zips(tmp_path):
    source = official.coco(tmp_path / "coco", 8)
    for folder in ("train2014", "val2014"):
        shutil.make_archive(str(tmp_path / folder), "zip", tmp_path / "coco" / "images", folder)
    zips = [str(tmp_path / f"{folder}2014.zip") for folder in ("train", "val")]
    told = prepare("coco-captions", str(source), tmp_path / "data", images=zips)
    assert told["records"] == {"train": 8, "validation": 4, "test": 4}
    first = read_records(tmp_path / "data", "validation")[0]
    assert (first.id, first.caption) == ("20", "picture 2 has many colours in it")
    assert first.image.path.read_bytes() == official.encoded(official.photo(2))


def test_captions_keep_every_sign_but_halves_of_one(tmp_path):
    source = official.coco(tmp_path / "coco", 1)
    text = source.read_text().replace("there is number 0", "an \\ud83e\\udd89 “owl”\\u0000 \\ud83e.")
    source.write_text(text, encoding="utf-8")
    prepare("coco-captions", str(source), tmp_path / "data", images=[str(source.parent / "images")])
    assert lines(tmp_path / "data")[1]["caption"].startswith("an 🦉 “owl”\0 ")


def test_cc3m_is_read_from_shards_as_img2dataset_writes_them(tmp_path):
    told = prepare("cc3m", str(official.cc3m_shards(tmp_path / "cc3m", 6)), tmp_path / "data")
    assert told["records"] == {"train": 6}
    records = read_records(tmp_path / "data")
    assert [record.caption for record in records] == [f"sample {i} of a shard" for i in range(6)]
    assert all(r.image.path.read_bytes() == official.encoded(official.photo(i)) for i, r in enumerate(records))


def test_visual_genome_gives_captions_of_regions_or_questions_from_both_folders(tmp_path):
    source = official.vg_regions(tmp_path / "vg")
    told = prepare("vg", str(source), tmp_path / "regions", images=[str(source.parent)], per_picture=2)
    assert told["pictures"]["made"] == 4
    assert told["records"] == {"train": 8}
    assert Counter(line["image"] for line in lines(tmp_path / "regions")).most_common(1)[0][1] == 2
    source = official.vg_questions(tmp_path / "vg")
    prepare("vg", str(source), tmp_path / "questions", images=[str(source.parent)])
    first = read_records(tmp_path / "questions")[0]
    assert (first.id, first.question, first.answers) == ("100", "What is thing 0?", ("Owl 1.",))


def test_gqa_gives_questions_with_their_structural_type_and_each_picture_once(tmp_path):
    source = official.gqa(tmp_path)
    told = prepare("gqa", str(source), tmp_path / "data", images=[str(tmp_path / "images.zip")], split="testdev")
    assert told["pictures"]["made"] == 4
    records = read_records(tmp_path / "data", "testdev")
    assert len(records) == 8
    assert (records[0].id, records[0].answers, records[0].kind) == ("07000000", ("pipe",), "query")
    assert records[0].image.path == records[4].image.path


@pytest.mark.parametrize("name", ["gqa", "coco"])
def test_a_task_asks_what_its_prepared_folder_teaches(name, tmp_path):
    source = MAKE[name](tmp_path)
    split = "train_balanced" if name == "gqa" else "train"
    if name == "gqa":
        shutil.unpack_archive(tmp_path / "images.zip", tmp_path)
    settings = {"split": split} if name == "gqa" else {}
    prepare(name, str(source), tmp_path / "data", images=[str(tmp_path), str(tmp_path / "images")], **settings)
    asked = tasks.get(name).read(Source(source, split, tmp_path / "images")).samples
    taught = read_records(tmp_path / "data", split)
    assert {(s.record.question, text, s.record.kind) for s in asked for text in s.record.references} <= {
        (r.question, r.target, r.kind) for r in taught
    }
    assert asked


def test_every_task_that_can_be_trained_on_is_a_source_by_its_name():
    trained = {name: task.format for name, task in tasks.TASKS.items() if task.format}
    assert {"gqa", "coco", "flickr30k"} <= set(trained)
    assert trained.items() <= SOURCES.items()
    assert SOURCES["coco-captions"] is SOURCES["coco"]


def test_llava_mix_gives_a_record_for_each_turn_and_counts_what_has_no_picture(tmp_path):
    source = official.llava(tmp_path)
    told = prepare("llava-mix", str(source), tmp_path / "data", images=[str(tmp_path)], form="instruct")
    assert told["skipped"] == {"without a picture": 1}
    assert told["pictures"]["made"] == 2
    records = read_records(tmp_path / "data")
    assert [(r.question, r.target) for r in records] == [
        ("What is shown?", "A bus."),
        ("What colour is it?", "Red and white."),
        ("Where is it?", "On a street."),
        ("Is it day?", "Yes"),
    ]
    assert len({record.image.path for record in records}) == 2


def test_sharegpt4v_gives_its_question_and_its_long_caption(tmp_path):
    prepare("sharegpt4v", str(official.sharegpt4v(tmp_path)), tmp_path / "data", images=[str(tmp_path)])
    record = read_records(tmp_path / "data")[0]
    assert record.question == "What do you see happening in this image?"
    assert record.target == "The image depicts a scene of many colours, from left to right."


def table(n: int = 5) -> datasets.Dataset:
    pictures = [{"bytes": official.encoded(official.photo(i)), "path": None} for i in range(n)]
    pictures[1]["bytes"] = official.odd("truncated.jpg", 1)
    told = {
        "jpg": pictures,
        "txt": [f"row {i} of a table" for i in range(n)],
        "q": ["What is it?"] * n,
        "multiple": [[{"answer": f"owl {i}"}, {"answer": "an owl"}, {"answer": "an owl"}] for i in range(n)],
    }
    answers = datasets.List({"answer": datasets.Value("string")})
    text = datasets.Value("string")
    features = {"jpg": datasets.Image(), "txt": text, "q": text, "multiple": answers}
    return datasets.Dataset.from_dict(told, features=datasets.Features(features))


def test_a_table_is_read_by_its_columns_saved_or_as_parquet(tmp_path):
    datasets.DatasetDict({"validation": table()}).save_to_disk(tmp_path / "saved")
    table().to_parquet(tmp_path / "table.parquet")
    options = {"columns": "image=jpg,caption=txt"}
    told = prepare("dataset", str(tmp_path / "saved"), tmp_path / "a", source_split="validation", **options)
    assert told["unusable"] == {"damaged": 1}
    prepare("dataset", str(tmp_path / "table.parquet"), tmp_path / "b", **options)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert [r.caption for r in read_records(tmp_path / "a")] == [f"row {i} of a table" for i in (0, 2, 3, 4)]


def test_all_answers_of_a_table_are_kept(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    prepare("dataset", str(tmp_path / "saved"), tmp_path / "data", columns="image=jpg,question=q,answer=multiple")
    record = read_records(tmp_path / "data")[1]
    assert record.answers == ("owl 2", "an owl", "an owl")
    assert record.target == "an owl"


def test_a_missing_table_or_column_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # or a machine without network tries for 20 seconds
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    table().save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    assert "no table that datasets can read" in refusal("dataset", "no-such-owner/no-such-name", tmp_path / "data")
    assert "--columns" in refusal("dataset", saved, tmp_path / "data")
    assert "did you mean 'txt'" in refusal("dataset", saved, tmp_path / "data", columns="image=jpg,caption=text")
    assert "did you mean 'image'" in refusal("dataset", saved, tmp_path / "data", columns="imag=jpg,caption=txt")
    assert os.listdir(tmp_path) == ["saved"]


# ---- malformed sources: file, record and field -----------------------------------------------------------------------

MAKE = {
    "coco": official.coco,
    "coco-captions": official.coco,
    "vg": official.vg_regions,
    "gqa": official.gqa,
    "llava-mix": official.llava,
    "sharegpt4v": official.sharegpt4v,
}


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        (
            "coco-captions",
            '"filename": "COCO_val2014_000000000002.jpg"',
            '"x": 1',
            'images[2]: field "filename" is',
        ),
        (
            "coco-captions",
            '"raw": "there is number 2"',
            '"raw": 7',
            'images[2]: sentences[1]: field "raw" must be',
        ),
        ("coco-captions", '"split": "val"', '"split": "vla"', 'images[2]: field "split" must be one of train, restval'),
        ("coco-captions", '"images"', '"pictures"', 'field "images" is missing or empty; give'),
        ("vg", '"id": 2, ', "", 'record 2: field "id" is missing'),
        ("vg", '"phrase": "thing 1 on the wall"', '"phrase": null', 'record 1: regions[1]: field "phrase" is missing'),
        ("vg", '"regions"', '"region"', 'record 1: field "regions" or "qas" is missing'),
        (
            "gqa",
            '"imageId": "2370001"',
            '"imageId": []',
            "record '07000001': field \"imageId\" must be a number",
        ),
        ("gqa", '"answer": "pipe"', '"answer": ["pipe"]', "record '07000000': field \"answer\" must be a text"),
        ("llava-mix", '"from": "gpt"', '"from": "bing"', 'record 1: turn 2: field "from" must be human or gpt'),
        ("llava-mix", '"conversations"', '"chat"', 'record 1: field "conversations" is missing'),
        ("sharegpt4v", '"image": "sam/images/sa_545504.jpg"', '"image": [1]', 'record 1: field "image" must be a text'),
    ],
)
def test_a_malformed_record_is_refused_with_file_record_and_field(name, before, after, told, tmp_path):
    source = MAKE[name](tmp_path / "source")
    text = source.read_text()
    assert before in text
    source.write_text(text.replace(before, after))
    message = refusal(name, str(source), tmp_path / "data", images=[str(tmp_path)])
    assert message.startswith(f"{source}: {told}")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("name", MAKE)
def test_a_file_that_breaks_off_is_refused_with_the_record_it_breaks_off_after(name, tmp_path):
    source = MAKE[name](tmp_path / "source")
    whole = source.read_bytes()
    source.write_bytes(whole.replace(b'"conversations"', b'\n"conversations"')[: len(whole) * 2 // 3])
    message = refusal(name, str(source), tmp_path / "data", images=[str(tmp_path)])
    assert f"{source}:" in message
    assert "malformed JSON after record " in message
    source.unlink()
    assert "no such file" in refusal(name, str(source), tmp_path / "data", images=[str(tmp_path)])


def test_the_place_of_a_fault_is_told_far_inside_a_file_of_many_blocks(tmp_path):
    told = [{"id": str(i), "image": "a.jpg", "conversations": []} for i in range(5000)]
    text = json.dumps(told, indent=0).replace('"id": "3000",', '"id": ,')
    source = official.put(tmp_path / "mix.json", text.encode())
    line = text[: text.index('"id": ,')].count("\n") + 1
    message = refusal("llava-mix", str(source), tmp_path / "data", images=[str(tmp_path)])
    assert f"mix.json:{line}: malformed JSON after record 3000, at byte " in message


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"a caption without an address", "tsv:2: no tab"),
        (b"a caption\tftp://example.org/1.jpg", 'tsv:2: field "url", after the tab, must begin with http'),
        (b"\xff\thttp://example.org/1.jpg", "tsv:2: not UTF-8"),
    ],
)
def test_a_malformed_line_of_a_tsv_file_is_refused(line, told, tmp_path):
    source = official.put(tmp_path / "cc3m.tsv", b"a caption\thttp://example.org/0.jpg\n" + line + b"\n")
    assert told in refusal("cc3m", str(source), tmp_path / "data")
    assert os.listdir(tmp_path) == ["cc3m.tsv"]


@pytest.mark.parametrize("size", [700, 2000, 4096])
def test_a_shard_that_breaks_off_is_refused(size, tmp_path):
    shard = official.cc3m_shards(tmp_path / "cc3m") / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:size])
    assert "00001.tar: after 00000000" in refusal("cc3m", str(shard.parent), tmp_path / "data")


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ({}, "sample 0: no .txt and no .json beside the picture"),
        ({"0.txt": b"\xff"}, "sample 0: its .txt cannot be read"),
        ({"0.json": b"[]"}, "sample 0: its .json cannot be read"),
        ({"0.json": b"{}"}, 'sample 0: field "caption" is missing'),
    ],
)
def test_a_sample_of_a_shard_without_a_caption_is_refused(beside, told, tmp_path):
    shard = official.tar_of(tmp_path / "0.tar", {"0.jpg": official.encoded(official.photo(0)), **beside})
    assert f"{shard}: {told}" in refusal("cc3m", str(shard), tmp_path / "data")
