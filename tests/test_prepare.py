"""Preparation of official data sets: formats read as published, faults named, nothing lost by an interruption."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import datasets
import pytest
import typer
from datasets.distributed import split_dataset_by_node
from PIL import Image

import official
import ressa
from ressa import cli
from ressa.data.prepare import SOURCES, check, plan, prepare, verb
from ressa.data.prepare.forms import INSTRUCTIONS
from ressa.data.prepare.output import MANIFEST, REPORT
from ressa.data.prepare.sums import SUMS
from ressa.data.records import read_records
from ressa.errors import RessaError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """`datasets` unpacks Parquet here."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lines(folder: Path, split: str = "train") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def report(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / REPORT).open(encoding="utf-8", newline="") as file:
        return {row["picture"]: row for row in csv.DictReader(file)}


def refusal(*args, **options) -> str:
    with pytest.raises(RessaError) as caught:
        prepare(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- a thousand pictures, fifty of them odd --------------------------------------------------------------------------

KINDS = list(official.UNUSABLE) + list(official.CONVERTED)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    """COCO in small: 1,000 pictures of which every twentieth is odd, five of each of ten kinds."""
    root = tmp_path_factory.mktemp("thousand")
    source = official.coco(root, 1000)
    told = json.loads(source.read_text())
    for i in range(0, 1000, 20):
        image = told["images"][i]
        old, new = image["filename"], f"{i:04d}_{KINDS[i // 20 % 10]}"
        (root / "images" / image["filepath"] / old).unlink()
        official.put(root / "images" / image["filepath"] / new, official.odd(KINDS[i // 20 % 10], i))
        image["filename"] = new
    official.dump(source, told)
    return root


@pytest.fixture(scope="module")
def prepared(thousand, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare("coco-captions", str(thousand / "dataset_coco.json"), out, images=[str(thousand / "images")])
    return out


def test_of_a_thousand_pictures_those_of_no_use_are_counted_and_named_and_the_others_made(prepared):
    told = json.loads((prepared / MANIFEST).read_text(encoding="utf-8"))
    assert told["pictures"] == {"asked": 1000, "made": 970, "unusable": 30, "not asked": 0}
    assert told["unusable"] == {"damaged": 15, "enormous": 5, "not a picture": 10}
    assert told["converted"] == {"alpha": 5, "animated": 5, "cmyk": 5, "palette": 5, "turned upright": 5}
    named = report(prepared)
    assert len(named) == 50
    for picture, row in named.items():
        kind = picture.partition("_")[2]
        assert row["outcome"] == ("unusable" if kind in official.UNUSABLE else "converted"), row
        assert row["what"] == (official.UNUSABLE | official.CONVERTED)[kind], row
        assert "dataset_coco.json: record " in row["record"]
        assert bool(row["file"]) == (kind in official.CONVERTED)
    assert told["records"] == {"train": 940, "validation": 500, "test": 500}
    assert len(list((prepared / "images").rglob("*.*"))) == 970


def test_every_picture_that_was_made_opens_as_rgb_upright_and_in_its_first_frame(prepared):
    records = [r for split in ("train", "validation", "test") for r in read_records(prepared, split)]
    opened = {record.image.path: record for record in records}
    assert len(opened) == 970
    for path in opened:
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert not getattr(image, "is_animated", False)
            image.load()
    named = {row["what"]: row for row in report(prepared).values()}
    with Image.open(prepared / named["turned upright"]["file"]) as turned:
        assert turned.size == (32, 48)
        assert turned.getexif().get(0x0112, 1) == 1
    animated = named["animated, palette"]
    with Image.open(prepared / animated["file"]) as first:
        i = int(Path(animated["picture"]).name[:4])
        assert first.tobytes() == official.photo(i).quantize(16).convert("RGB").tobytes()


def test_a_picture_that_needs_no_change_keeps_its_bytes(thousand, prepared):
    record = read_records(prepared, "train")[0]
    original = thousand / "images" / "val2014" / "COCO_val2014_000000000001.jpg"
    assert record.image.path.read_bytes() == original.read_bytes()


def run(*words: object, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "ressa.cli", *map(str, words)], stderr=subprocess.PIPE, **options)


def test_killed_in_the_middle_and_run_again_it_ends_with_the_same_bytes(thousand, prepared, tmp_path):
    words = [
        "data",
        "coco-captions",
        thousand / "dataset_coco.json",
        tmp_path / "data",
        "--images",
        thousand / "images",
    ]
    partial = tmp_path / ".data.partial"
    killed = run(*words)
    while len(list((partial / "out").glob("images/*/*"))) < 300:
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    made = len(list((partial / "out").glob("images/*/*")))
    assert 300 <= made < 970
    assert not (tmp_path / "data").exists()
    before = max(path.stat().st_mtime_ns for path in (partial / "out").glob("images/*/*"))
    again = run(*words)
    _, err = again.communicate()
    assert again.returncode == 0, err
    kept = sum(path.stat().st_mtime_ns <= before for path in (tmp_path / "data").glob("images/*/*"))
    assert kept > made - 200  # what was made is not made again, but for what was under way
    assert digests(tmp_path / "data") == digests(prepared)
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("options", [{"form": "prefix"}, {"shard_size": 5}], ids=["files", "shards"])
@pytest.mark.parametrize("stage", ["_add", "keep", "write_report", "write_records", "finish"])
def test_interrupted_at_any_stage_it_ends_with_the_same_bytes(stage, options, tmp_path, monkeypatch):
    source, images = str(official.coco(tmp_path / "coco", 12)), [str(tmp_path / "coco" / "images")]
    prepare("coco-captions", source, tmp_path / "whole", images=images, **options)
    module = plan if stage in ("_add", "keep") else verb
    there, calls = getattr(module, stage), itertools.count(1)

    def broken(*args, **keywords):
        done = there(*args, **keywords) if stage != "keep" else None
        if next(calls) == (5 if stage == "_add" else 1):
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(module, stage, broken)
    with pytest.raises(KeyboardInterrupt):
        prepare("coco-captions", source, tmp_path / "data", images=images, **options)
    assert not (tmp_path / "data").exists()
    monkeypatch.undo()
    prepare("coco-captions", source, tmp_path / "data", images=images, **options)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["coco", "data", "whole"]


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


def test_a_missing_table_or_column_is_named(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    assert "no table that datasets can read" in refusal("dataset", "no-such-owner/no-such-name", tmp_path / "data")
    assert "--columns" in refusal("dataset", saved, tmp_path / "data")
    assert "did you mean 'txt'" in refusal("dataset", saved, tmp_path / "data", columns="image=jpg,caption=text")
    assert "did you mean 'image'" in refusal("dataset", saved, tmp_path / "data", columns="imag=jpg,caption=txt")
    assert os.listdir(tmp_path) == ["saved"]


# ---- malformed sources: file, record and field -----------------------------------------------------------------------

MAKE = {
    "coco-captions": official.coco,
    "vg": official.vg_regions,
    "gqa": official.gqa,
    "llava-mix": official.llava,
    "sharegpt4v": official.sharegpt4v,
}


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("coco-captions", '"filename": "COCO_val2014_000000000002.jpg"', '"x": 1', '3: field "filename" is missing'),
        ("coco-captions", '"raw": "there is number 2"', '"raw": 7', '3: sentence 2: field "raw" must be a text'),
        ("coco-captions", '"split": "val"', '"split": "vla"', '3: field "split" must be one of train, restval'),
        ("coco-captions", '"images"', '"pictures"', "no records in"),
        ("vg", '"id": 2, ', "", '2: field "id" is missing'),
        ("vg", '"phrase": "thing 1 on the wall"', '"phrase": null', '1: region 2: field "phrase" is missing'),
        ("vg", '"regions"', '"region"', '1: field "regions" or "qas" is missing'),
        ("gqa", '"imageId": "2370001"', '"imageId": []', "'07000001': field \"imageId\" must be a number or a text"),
        ("gqa", '"answer": "pipe"', '"answer": ["pipe"]', "'07000000': field \"answer\" must be a text"),
        ("llava-mix", '"from": "gpt"', '"from": "bing"', '1: turn 2: field "from" must be human or gpt'),
        ("llava-mix", '"conversations"', '"chat"', '1: field "conversations" is missing'),
        ("sharegpt4v", '"image": "sam/images/sa_545504.jpg"', '"image": ["a"]', '1: field "image" must be a text'),
    ],
)
def test_a_malformed_record_is_refused_with_file_record_and_field(name, before, after, told, tmp_path):
    source = MAKE[name](tmp_path / "source")
    text = source.read_text()
    assert before in text
    source.write_text(text.replace(before, after))
    message = refusal(name, str(source), tmp_path / "data", images=[str(tmp_path)])
    assert message.startswith(f"{source}: {'' if told.startswith('no') else 'record '}{told}")
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


# ---- forms, splits, sampling -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> Path:
    return official.vg_regions(tmp_path_factory.mktemp("vg"), 40)


def made(regions: Path, out: Path, **options) -> Path:
    prepare("vg", str(regions), out, images=[str(regions.parent)], **options)
    return out


def test_a_prefix_is_one_or_more_whole_words_of_the_first_half_and_the_caption_goes_on(regions, tmp_path):
    records = read_records(made(regions, tmp_path / "data", form="prefix"))
    whole = [f"{record.prefix} {record.caption}" for record in records]
    assert whole == [f"thing {k} on the wall" for _ in range(40) for k in range(3)]
    assert Counter(len(record.prefix.split()) for record in records).keys() == {1, 2}


def test_instructions_are_those_of_instructblip_and_vary(regions, tmp_path):
    records = read_records(made(regions, tmp_path / "data", form="instruct"))
    assert {record.question for record in records} == set(INSTRUCTIONS)
    assert records[0].target == "thing 0 on the wall"


def test_questions_have_no_prefix_form(tmp_path):
    source = official.vg_questions(tmp_path / "vg")
    message = refusal("vg", str(source), tmp_path / "data", images=[str(source.parent)], form="prefix")
    assert "no captions that could be cut into prefixes" in message
    assert os.listdir(tmp_path) == ["vg"]


def test_captions_of_one_word_are_counted_where_a_prefix_is_asked_for(tmp_path):
    source = official.vg_regions(tmp_path / "vg")
    source.write_text(source.read_text().replace("thing 1 on the wall", "wall").replace("thing 2 on the wall", " "))
    told = prepare("vg", str(source), tmp_path / "data", images=[str(source.parent)], form="prefix")
    assert told["skipped"] == {"empty text": 4, "one word, which has no prefix": 4}
    assert told["records"] == {"train": 4}


def test_a_limit_draws_pictures_by_the_seed_and_the_same_ones_from_a_longer_list(regions, tmp_path):
    first = made(regions, tmp_path / "first", limit=10)
    assert digests(made(regions, tmp_path / "again", limit=10)) == digests(first)
    assert json.loads((first / MANIFEST).read_text())["pictures"]["not asked"] == 30
    drawn = {line["image"] for line in lines(first)}
    assert len(drawn) == 10
    assert drawn != {line["image"] for line in lines(made(regions, tmp_path / "other", limit=10, seed=1))}
    assert drawn < {line["image"] for line in lines(made(regions, tmp_path / "more", limit=20))}


def test_shares_that_are_held_out_share_no_picture_and_depend_on_the_seed(regions, tmp_path):
    shares = {"validation": 0.25, "test": 0.25}
    folder, other = made(regions, tmp_path / "a", **shares), made(regions, tmp_path / "b", seed=1, **shares)
    pictures = {split: {line["image"] for line in lines(folder, split)} for split in ("train", "validation", "test")}
    assert sum(map(len, pictures.values())) == len(set().union(*pictures.values())) == 40
    assert 4 <= len(pictures["validation"]) <= 16
    assert pictures["test"] != {line["image"] for line in lines(other, "test")}


def test_longer_sides_are_scaled_down_and_shorter_ones_stay(tmp_path):
    source = official.vg_regions(tmp_path / "vg", 2)
    official.put(tmp_path / "vg" / "VG_100K" / "1.jpg", official.encoded(official.photo(1, (320, 200))))
    told = prepare("vg", str(source), tmp_path / "data", images=[str(source.parent)], max_side=64)
    assert told["converted"] == {"scaled down": 1}
    assert report(tmp_path / "data") == {}
    assert {r.open_image().size for r in read_records(tmp_path / "data")} == {(64, 40), (48, 32)}


# ---- downloads -------------------------------------------------------------------------------------------------------


class Pages(BaseHTTPRequestHandler):
    """/N.jpg is picture N; other paths fail in ways of their own. `asked` counts requests."""

    asked: ClassVar[Counter[str]] = Counter()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        data = official.encoded(official.photo(7))
        kind = self.path.strip("/").partition(".")[0]
        if kind == "hangs":
            time.sleep(4)
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/5.jpg")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        statuses = {"gone": 404, "busy": 503, "recovers": 503 if self.asked[self.path] == 1 else 200}
        self.send_response(statuses.get(kind, 200))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if kind == "drips":
            for i in range(40):
                self.wfile.write(data[i : i + 1])
                time.sleep(0.1)
        self.wfile.write(data[:300] if kind == "breaks" else b"<html>" + data[6:] if kind == "page" else data)
        self.close_connection = kind in ("breaks", "drips")
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def pages():
    Pages.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.handle_error = lambda *_: None  # clients that no longer wait
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("ressa.data.prepare.download.PAUSE", 0.01)
    return {"timeout": 1.2, "retries": 1}


FAULTS = {
    "gone": ("dead link", "HTTP 404", 1),
    "busy": ("dead link", "HTTP 503", 2),
    "hangs": ("timeout", "no answer within 1.2 s", 2),
    "drips": ("timeout", "within 1.2 s", 2),
    "breaks": ("cut off in transfer", "IncompleteRead", 2),
    "page": ("not a picture", "<html>", 1),
}


def test_of_addresses_the_dead_ones_are_named_with_what_they_said_and_tried_again_where_that_may_help(
    pages, impatient, tmp_path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/1.jpg"  # nobody listens once it is closed
    good = [f"{pages}/{i}.jpg" for i in range(12)] + [f"{pages}/moved.jpg", f"{pages}/recovers.jpg"]
    source = official.cc3m_tsv(tmp_path, [*good, *(f"{pages}/{kind}.jpg" for kind in FAULTS), closed])
    told = prepare("cc3m", str(source), tmp_path / "data", **impatient)
    assert told["pictures"] == {"asked": 21, "made": 14, "unusable": 7, "not asked": 0}
    assert told["unusable"] == {"cut off in transfer": 1, "dead link": 3, "not a picture": 1, "timeout": 2}
    named = report(tmp_path / "data")
    for kind, (reason, detail, tries) in FAULTS.items():
        row = named[f"{pages}/{kind}.jpg"]
        assert row["what"] == reason, row
        assert detail in row["detail"], row
        assert Pages.asked[f"/{kind}.jpg"] in ((1, 2) if reason == "timeout" else (tries,)), kind
    assert "refused" in named[closed]["detail"]
    assert Pages.asked["/recovers.jpg"] == 2
    assert len(read_records(tmp_path / "data")) == 14


def test_what_is_too_large_is_given_up(pages, impatient, tmp_path, monkeypatch):
    monkeypatch.setattr("ressa.data.prepare.download.MOST_BYTES", 500)
    source = official.cc3m_tsv(tmp_path, [f"{pages}/1.jpg"])
    assert "too many bytes 1" in refusal("cc3m", str(source), tmp_path / "data", **impatient)


def test_a_hopeless_run_stops_with_its_reasons_and_goes_on_where_more_is_allowed(pages, impatient, tmp_path):
    links = [f"{pages}/{'gone' if i % 4 else 'fine'}.jpg?{i}" for i in range(300)]
    source = official.cc3m_tsv(tmp_path, links)
    message = refusal("cc3m", str(source), tmp_path / "data", max_failed=0.6, workers=2, **impatient)
    assert "pictures cannot be used (dead link " in message
    assert "HTTP 404), more than --max-failed 0.6" in message
    asked = Pages.asked.total()
    assert 100 <= asked < 200
    told = prepare("cc3m", str(source), tmp_path / "data", max_failed=0.8, workers=2, **impatient)
    assert told["pictures"]["made"] == 75
    assert Pages.asked.total() <= 300 + 2 * 8  # nothing twice but what was under way


def test_what_failed_for_a_reason_that_may_pass_is_tried_again_by_the_next_run(pages, impatient, tmp_path):
    source = official.cc3m_tsv(tmp_path, [f"{pages}/recovers.jpg", f"{pages}/gone.jpg"])
    assert "dead link 2" in refusal("cc3m", str(source), tmp_path / "data", timeout=1.2, retries=0)
    told = prepare("cc3m", str(source), tmp_path / "data", **impatient)
    assert told["pictures"]["made"] == 1
    assert Pages.asked["/gone.jpg"] == 1


# ---- shards, sums, the models that read it ---------------------------------------------------------------------------


def test_shards_hold_the_same_records_and_pictures_and_are_dealt_out_to_processes(regions, tmp_path):
    plain = read_records(made(regions, tmp_path / "plain"))
    folder = made(regions, tmp_path / "sharded", shard_size=25)
    shards = sorted(path.name for path in folder.glob("*.parquet"))
    assert shards == [f"train-{i:05d}-of-00005.parquet" for i in range(5)]
    assert sorted(os.listdir(folder)) == [SUMS, REPORT, MANIFEST, *shards]
    records = read_records(folder)
    assert [(r.id, r.caption) for r in records] == [(r.id, r.caption) for r in plain]
    assert all(a.open_image().tobytes() == b.open_image().tobytes() for a, b in zip(records, plain, strict=True))
    files = [str(folder / name) for name in shards]
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert stream.num_shards == 5
    parts = [[row["id"] for row in split_dataset_by_node(stream, rank, 5)] for rank in range(5)]
    assert sorted(ident for part in parts for ident in part) == sorted(record.id for record in plain)
    assert [len(part) for part in parts] == [25, 25, 25, 25, 20]


@pytest.mark.parametrize("form", ["plain", "prefix", "instruct"])
def test_shards_hold_every_form(regions, form, tmp_path):
    plain = read_records(made(regions, tmp_path / "plain", form=form))
    sharded = read_records(made(regions, tmp_path / "sharded", form=form, shard_size=50))
    assert [(r.question, r.prefix, r.target) for r in sharded] == [(r.question, r.prefix, r.target) for r in plain]


def test_a_split_that_is_not_there_is_refused_with_the_shards_that_are(regions, tmp_path):
    folder = made(regions, tmp_path / "sharded", shard_size=50)
    with pytest.raises(RessaError, match=r"no test\.jsonl \(splits found there: train\)"):
        read_records(folder, "test")


def test_the_sums_are_those_of_sha256sum_and_tell_of_every_change(regions, tmp_path):
    folder = made(regions, tmp_path / "data")
    assert check(folder)["files"] == 43
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=True)
    first, second, third = sorted((folder / "images").rglob("*.jpg"))[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    third.with_name("mine.jpg").write_bytes(b"")
    with pytest.raises(RessaError) as caught:
        check(folder)
    for what, path in (("1 missing", first), ("1 changed", second), ("1 not listed", third.with_name("mine.jpg"))):
        assert f"{what}, such as {path.relative_to(folder)}" in str(caught.value)


def test_sums_that_lead_out_of_the_folder_are_refused(tmp_path):
    for line in ("0" * 64 + "  ../secret", "0" * 64 + "  /etc/passwd", "no sum"):
        (tmp_path / SUMS).write_text(line + "\n")
        with pytest.raises(RessaError, match="SHA256SUMS:1: must be a SHA-256"):
            check(tmp_path)
    with pytest.raises(RessaError, match="no SHA256SUMS"):
        check(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "options", [{"form": "prefix"}, {"form": "instruct", "shard_size": 40}], ids=["files", "shards"]
)
def test_a_prepared_folder_calibrates_the_embedded_model(regions, options, tmp_path):
    folder = made(regions, tmp_path / "data", **options)
    told = ressa.prune("demo", tmp_path / "out", data=folder, method="wanda", samples=4)
    assert told["parts"]["language"]["sparsity"] == 0.5


# ---- what is refused before anything is done -------------------------------------------------------------------------


def test_what_cannot_work_is_refused_and_leaves_nothing(regions, tmp_path):
    out, source, images = tmp_path / "new" / "data", str(regions), [str(regions.parent)]
    assert "did you mean 'cc3m'" in refusal("cc3", source, out)
    assert "--images" in refusal("vg", source, out)
    assert "no such folder or .zip" in refusal("vg", source, out, images=["/nowhere"])
    assert "nor a sound .zip" in refusal("vg", source, out, images=[source])
    assert "leave nothing for train" in refusal("vg", source, out, images=images, validation=0.5, test=0.5)
    assert "columns and source_split are for" in refusal("vg", source, out, images=images, columns="a=b")
    assert "plain name" in refusal("vg", source, out, images=images, split="../train")
    assert "splits of its own" in refusal("coco-captions", source, out, images=images, test=0.1)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_preparation_is_not_continued_with_other_settings(regions, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made(regions, tmp_path / "data")
    monkeypatch.undo()
    options = {"images": [str(regions.parent)]}
    told = refusal("vg", str(regions), tmp_path / "data", **options, form="prefix")
    assert f"{tmp_path}/.data.partial: an unfinished preparation with another form ('plain', not 'prefix')" in told
    with plan.connect(tmp_path / ".data.partial" / "plan.sqlite") as held:
        assert "in use" in refusal("vg", str(regions), tmp_path / "data", **options)
    held.close()
    made(regions, tmp_path / "data", workers=3)
    assert digests(tmp_path / "data") == digests(made(regions, tmp_path / "other"))


def test_names_that_lead_out_of_the_folder_of_pictures_are_not_followed(tmp_path):
    official.put(tmp_path / "secret.jpg", official.encoded(official.photo(0)))
    source = official.sharegpt4v(tmp_path / "inside")
    text = source.read_text()
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        source.write_text(text.replace("sam/images/sa_545504.jpg", name))
        message = refusal("sharegpt4v", str(source), tmp_path / "data", images=[str(tmp_path / "inside")])
        assert "not found 1" in message
        assert "leads out" in message
        shutil.rmtree(tmp_path / ".data.partial")


def test_every_source_has_a_command():
    group = typer.main.get_command(cli.app).commands["data"]
    assert set(group.commands) == {*SOURCES, "emoji", "check"}
