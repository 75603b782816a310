"""Preparation of official data sets: formats read as published, faults named, nothing lost by an interruption."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import datasets
import pytest
import typer
from datasets.distributed import split_dataset_by_node
from PIL import Image

import official
import ressa
from official import digests, lines, prepare, refusal, report
from ressa import cli
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.preparation import plan, verb
from ressa.preparation.forms import INSTRUCTIONS
from ressa.preparation.output import MANIFEST, REPORT
from ressa.preparation.settings import Prepare
from ressa.preparation.sources import SOURCES
from ressa.preparation.sums import SUMS, check

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
        assert "dataset_coco.json: images[" in row["record"]
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


@contextmanager
def interrupted(module, name: str, at: int = 1, *, before: bool = True):
    """Ctrl-C where `module.name` is called for the `at`-th time: before anything is done, or when it is done."""
    there, calls = getattr(module, name), itertools.count(1)

    def broken(*args, **options):
        now = next(calls) == at
        done = None if now and before else there(*args, **options)
        if now:
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, broken)
        with pytest.raises(KeyboardInterrupt):
            yield


STAGES = [(plan, "_add", 5), (plan, "keep", 2), (verb, "write_report"), (verb, "write_records"), (verb, "finish")]


@pytest.mark.parametrize("options", [{"form": "prefix"}, {"shard_size": 5}], ids=["files", "shards"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("stage", STAGES, ids=[stage[1] for stage in STAGES])
def test_interrupted_at_any_stage_it_ends_with_the_same_bytes(stage, before, options, tmp_path):
    source, images = str(official.coco(tmp_path / "coco", 12)), [str(tmp_path / "coco" / "images")]
    prepare("coco-captions", source, tmp_path / "whole", images=images, **options)
    with interrupted(*stage, before=before):
        prepare("coco-captions", source, tmp_path / "data", images=images, **options)
    assert not (tmp_path / "data").exists()
    prepare("coco-captions", source, tmp_path / "data", images=images, **options)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["coco", "data", "whole"]


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
    assert "did you mean 'prefix'" in refusal("vg", source, out, images=images, form="prefx")
    assert "limit: 0 must be at least 1" in refusal("vg", source, out, images=images, limit=0)
    assert "plain name" in refusal("vg", source, out, images=images, split="../train")
    assert "splits of its own" in refusal("coco-captions", source, out, images=images, test=0.1)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_preparation_is_not_continued_with_other_settings(regions, tmp_path):
    with interrupted(verb, "finish"):
        made(regions, tmp_path / "data")
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


def test_the_command_line_has_every_source_and_the_settings_of_the_verb():
    group = typer.main.get_command(cli.app).commands["data"]
    assert set(group.commands) == {*SOURCES, "emoji", "check"}
    options = {option.name for option in group.commands["gqa"].params}
    assert options == {f.name for f in fields(Prepare)} | {"source", "out", "images", "as_json"}


def test_a_picture_lost_since_the_interruption_is_made_again(regions, tmp_path):
    with interrupted(verb, "finish"):
        made(regions, tmp_path / "data")
    next((tmp_path / ".data.partial").rglob("*.jpg")).unlink()
    assert check(made(regions, tmp_path / "data"))["files"] == 43


def test_what_a_run_left_that_was_killed_while_tidying_up_is_not_taken_for_work_done(regions, tmp_path):
    with interrupted(shutil, "rmtree"):
        made(regions, tmp_path / "data")
    whole = digests(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    assert digests(made(regions, tmp_path / "data")) == whole
    assert os.listdir(tmp_path) == ["data"]


def test_an_interrupted_preparation_of_a_table_is_taken_up(tmp_path):
    rows = {"image": [{"bytes": official.encoded(official.photo(i)), "path": None} for i in range(4)]}
    rows["caption"] = ["one", None, "", "two"]
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "saved.parquet")
    for source in ("saved", "saved.parquet"):
        with interrupted(verb, "finish"):
            prepare("dataset", str(tmp_path / source), tmp_path / "data")
        told = prepare("dataset", str(tmp_path / source), tmp_path / "data")
        assert (told["records"], told["skipped"]) == ({"train": 2}, {"empty text": 2})
        shutil.rmtree(tmp_path / "data")
