"""What public reports tell of real files: each read rightly, or refused by one line."""

from __future__ import annotations

import base64
import json
import unicodedata

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import official
from official import lines, prepare
from ressa import tasks
from ressa.data import embedded, fields, parse
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.evaluation.summary import read_answers
from ressa.tasks.base import Source
from ressa.tasks.files import Pictures, read_object

pytestmark = pytest.mark.usefixtures("datasets_cache")

PNG = official.encoded(official.photo(1), "PNG")
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
COLUMNS = {
    "struct": lambda data: pa.array([{"bytes": data, "path": None}] * 2, STRUCT),
    "binary": lambda data: pa.array([data] * 2, pa.binary()),
    "large binary": lambda data: pa.array([data] * 2, pa.large_binary()),
    "base64": lambda data: pa.array([base64.b64encode(data).decode()] * 2),
    "data address": lambda data: pa.array(["data:image/png;base64," + base64.b64encode(data).decode()] * 2),
    "list of one": lambda data: pa.array([[{"bytes": data, "path": None}]] * 2, pa.list_(STRUCT)),
}


def refusal(source, split="train"):
    with pytest.raises(RessaError) as caught:
        read_records(source, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def asked(folder, **record):
    (folder / "train.jsonl").write_text(json.dumps({"question": "?", "answer": "red", **record}), encoding="utf-8")
    return folder


# ---- tables that others wrote, prepared and evaluated ----------------------------------------------------------------


@pytest.mark.parametrize("kind", COLUMNS)
def test_pictures_of_any_column_are_prepared(kind, tmp_path):
    table = pa.table({"image": COLUMNS[kind](PNG), "caption": ["one picture", "another one"]})
    pq.write_table(table, tmp_path / "mine.parquet")
    told = prepare("dataset", str(tmp_path / "mine.parquet"), tmp_path / "out")
    assert told["records"] == {"train": 2}
    assert read_records(tmp_path / "out")[1].image.path.read_bytes() == PNG


def test_base64_that_is_damaged_is_counted_and_named(tmp_path):
    text = base64.b64encode(official.encoded(Image.effect_noise((90, 90), 50), "PNG")).decode()
    table = pa.table({"image": [text, text[:5000] + "!" + text[5000:]], "caption": ["one", "two"]})
    pq.write_table(table, tmp_path / "mine.parquet")
    assert prepare("dataset", str(tmp_path / "mine.parquet"), tmp_path / "out")["unusable"] == {"damaged": 1}
    with pytest.raises(RessaError, match='field "image" is not base64'):
        read_records(tmp_path / "mine.parquet")[1].open_image()


def test_rows_with_several_pictures_or_none_are_skipped_and_counted(tmp_path):
    cell = {"bytes": PNG, "path": None}
    images = pa.array([[cell, cell], [], [cell]], pa.list_(STRUCT))
    pq.write_table(pa.table({"image": images, "caption": ["two", "none", "one"]}), tmp_path / "mine.parquet")
    told = prepare("dataset", str(tmp_path / "mine.parquet"), tmp_path / "out")
    assert told["skipped"] == {"several pictures": 1, "without a picture": 1}
    assert [line["caption"] for line in lines(tmp_path / "out")] == ["one"]


def test_labels_and_numbers_of_a_table_are_prepared_as_texts(tmp_path):
    label = datasets.ClassLabel(names=["owl", "cat"])
    features = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": label}
    cells = [{"bytes": PNG, "path": None}] * 2
    told = {"image": cells, "question": ["?", "?"], "answer": [1, 0]}
    datasets.Dataset.from_dict(told, features=datasets.Features(features)).to_parquet(tmp_path / "a.parquet")
    prepare("dataset", str(tmp_path / "a.parquet"), tmp_path / "a")
    assert [line["answer"] for line in lines(tmp_path / "a")] == ["cat", "owl"]
    table = pa.table({"image": COLUMNS["binary"](PNG), "question": ["?", "?"], "answer": [3.0, float("nan")]})
    pq.write_table(table, tmp_path / "b.parquet")
    assert prepare("dataset", str(tmp_path / "b.parquet"), tmp_path / "b")["skipped"] == {"empty text": 1}
    assert [line["answer"] for line in lines(tmp_path / "b")] == ["3"]
    table = pa.table({"image": COLUMNS["binary"](PNG), "question": ["?", "?"], "answer": [True, False]})
    pq.write_table(table, tmp_path / "c.parquet")
    assert "must be a text" in official.refusal("dataset", str(tmp_path / "c.parquet"), tmp_path / "c")


@pytest.mark.parametrize("kind", COLUMNS)
def test_pictures_of_any_column_are_seen_by_a_benchmark(kind, tmp_path):
    told = {"question_id": [1, 2], "question": ["?", "?"], "answers": [["a", "c"], ["b"]], "image": COLUMNS[kind](PNG)}
    pq.write_table(pa.table(told), tmp_path / "validation.parquet")
    samples = tasks.get("textvqa").read(Source(tmp_path, "val")).samples
    assert [s.record.open_image().tobytes() for s in samples] == [official.photo(1).tobytes()] * 2
    assert samples[0].record.answers == ("a", "c")


@pytest.mark.parametrize("name", ["textvqa", "vqav2", "pope", "nocaps", "coco", "mmbench"])
def test_a_row_of_a_benchmark_whose_picture_is_not_read_is_refused(name, tmp_path):
    text = ["?", "?"]
    told = {"question_id": [1, 2], "question": text, "answers": [["a"], ["b"]], "answer": [["a"], ["b"]]}
    told |= {"annotations_captions": [["a"], ["b"]], "image": ["1.png", "2.png"]}
    if name in ("pope", "mmbench"):
        told |= {"answer": ["yes", "no"] if name == "pope" else ["A", "B"], "index": [1, 2], "A": text, "B": text}
    pq.write_table(pa.table(told), tmp_path / "test.parquet")
    with pytest.raises(RessaError, match=r':0: column "image" holds no picture'):
        tasks.get(name).read(Source(tmp_path, "test"))


def test_answers_that_datasets_turned_inside_out_are_read():
    records = read_records(datasets.Dataset.from_dict({"question": ["?"], "answers": [{"answer": ["owl", "cat"]}]}))
    assert records[0].answers == ("owl", "cat")


# ---- texts -----------------------------------------------------------------------------------------------------------

READERS = {
    "records": lambda path: read_records(path),
    "json": lambda path: read_object(path),
    "llava-mix": lambda path: prepare("llava-mix", str(path), path.parent / "out"),
    "vg": lambda path: prepare("vg", str(path), path.parent / "out"),
    "gqa": lambda path: prepare("gqa", str(path), path.parent / "out"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("around", ['{{"question": "?", "answer": {}}}', "[{}]"])
def test_a_number_of_5000_digits_ends_in_one_line(reader, around, tmp_path):
    path = official.put(tmp_path / "x.json", around.format("1" * 5000).encode())
    with pytest.raises(RessaError, match=r"digits|braces|array") as caught:
        READERS[reader](path)
    assert len(str(caught.value)) < 400


def test_half_of_a_surrogate_pair_becomes_the_replacement_character_everywhere(tmp_path):
    half = "\\ud83e"
    told = f'{{"id": "{half}", "kind": "{half}", "question": "an owl {half}?", "answer": "{half} \\ud83e\\udd89"}}'
    record = read_records(official.put(tmp_path / "a.jsonl", told.encode()))[0]
    assert (record.id, record.kind, record.question, record.answers) == ("�", "�", "an owl �?", ("� 🦉",))
    assert read_object(official.put(tmp_path / "b.json", f'{{"{half}": ["{half}"]}}'.encode())) == {"�": ["�"]}
    official.put(tmp_path / "1.png", PNG)
    chat = f'[{{"id": "{half}", "image": "1.png", "conversations": [{{"from": "human", "value": "{half}?"}}, '
    chat += f'{{"from": "gpt", "value": "{half}"}}]}}]'
    prepare("llava-mix", str(official.put(tmp_path / "c.json", chat.encode())), tmp_path / "c", images=[str(tmp_path)])
    record = read_records(tmp_path / "c")[0]
    assert {record.id[0], record.question[0], record.target} <= {"?", "�"}  # ijson writes one or the other
    source = official.gqa(tmp_path / "gqa")
    source.write_text(source.read_text().replace('"07000000"', f'"{half}"'))
    prepare("gqa", str(source), tmp_path / "d", images=[str(tmp_path / "gqa" / "images.zip")])
    assert read_records(tmp_path / "d")[0].id in ("?", "�")


def test_what_is_nested_deeply_ends_in_one_line(tmp_path):
    deep = "[" * 3000 + "]" * 3000
    for reader, text in {"records": deep, "vg": f"[{deep}]", "gqa": f'{{"1": {deep}}}', "llava-mix": deep}.items():
        path = official.put(tmp_path / f"{reader}.json", text.encode())
        with pytest.raises(RessaError, match=r"nested|braces|array"):
            READERS[reader](path)
    told = f'{{"x": {"[" * 900}{"]" * 900}, "question": "?", "answer": "red"}}'
    assert read_records(official.put(tmp_path / "x.jsonl", told.encode()))[0].image is None
    shard = official.tar_of(tmp_path / "0.tar", {"0.jpg": PNG, "0.json": deep.encode()})
    assert "its .json cannot be read" in official.refusal("cc3m", str(shard), tmp_path / "out")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_separators_of_unicode_end_no_line(sign, tmp_path):
    official.put(tmp_path / "1.png", PNG)
    told = {"question_id": 1, "image": "1.png", "text": f"an{sign}owl?", "label": "yes"}
    line = json.dumps(told, ensure_ascii=False).replace("\\f", "\x0c") if sign != "\x0c" else json.dumps(told)
    official.put(tmp_path / "coco_pope_random.json", f"{line}\r\n{line}\n".encode())
    samples = tasks.get("pope").read(Source(tmp_path, "test", tmp_path)).samples
    assert [s.record.question for s in samples] == [f"an{sign}owl?"] * 2
    official.put(tmp_path / "answers.jsonl", json.dumps({"id": "1", "answer": sign}, ensure_ascii=False).encode())
    assert read_answers(tmp_path) == {"1": sign}


def test_windows_line_ends_a_byte_order_mark_and_utf_16(tmp_path):
    line = json.dumps({"question": "?", "answer": "red"})
    records = read_records(official.put(tmp_path / "a.jsonl", f"\ufeff{line}\r\n\r\n{line}\r\n".encode()))
    assert [r.id for r in records] == ["a-1", "a-3"]
    assert "it is UTF-16, save it as UTF-8" in refusal(official.put(tmp_path / "b.jsonl", line.encode("utf-16")))


@pytest.mark.parametrize("answer", ["Infinity", "-Infinity", "[NaN]", '["red"]', "true", "{}"])
def test_what_is_neither_text_nor_number_is_no_answer(answer, tmp_path):
    key = "answers" if "NaN" in answer else "answer"
    told = f'{{"question": "?", "{key}": {answer}}}'
    assert f'"{key}"' in refusal(official.put(tmp_path / "a.jsonl", told.encode()))


# ---- pictures and their names ----------------------------------------------------------------------------------------


def test_names_are_found_as_windows_and_macos_spell_them(tmp_path):
    name = unicodedata.normalize("NFC", "sub/café.png")
    official.put(tmp_path / unicodedata.normalize("NFD", name), PNG)
    for spelt in (name, unicodedata.normalize("NFD", name), name.replace("/", "\\")):
        assert read_records(asked(tmp_path, image=spelt))[0].open_image().size == (48, 32)
        told = {"image": spelt, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "red"}]}
        source, out = official.dump(tmp_path / "mix.json", [told]), tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        assert prepare("llava-mix", str(source), out, images=[str(tmp_path)])["pictures"]["made"] == 1
        assert Pictures(Source(tmp_path, "test")).find("x", spelt).open().size == (48, 32)
    for spelt in ("sub\\..\\..\\x.png", "C:\\x.png", "\\x.png", "sub/CAFÉ.png", "sub/caf%C3%A9.png"):
        told = refusal(asked(tmp_path, image=spelt))
        assert "does not exist" in told or "leaves the data folder" in told


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_picture(tmp_path):
    official.put(tmp_path / "1.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(RessaError, match="git lfs pull"):
        read_records(asked(tmp_path, image="1.jpg"))[0].open_image()


def test_base64_of_every_format_is_told_from_names_of_files(tmp_path):
    image = Image.new("RGB", (40, 30), "red")
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"):
        text = base64.b64encode(official.encoded(image, form)).decode()
        for spelt in (text, text.rstrip("="), "\n".join(text[i : i + 76] for i in range(0, len(text), 76))):
            red = read_records(asked(tmp_path, image=spelt))[0].open_image().getpixel((5, 5))
            assert red[0] > 250
            assert max(red[1:]) < 5
    for name in ("/9j/1.jpg", "Qk" + "a" * 100 + ".png", "data/1.png", "data:image/svg+xml;utf8,<svg/>"):
        assert "exist" in (told := refusal(asked(tmp_path, image=name))) or "leaves" in told
    damaged = read_records(asked(tmp_path, image="data:image/png;base64,iVBORw0KGgo!"))[0]
    with pytest.raises(RessaError, match='1: field "image" is not base64'):
        damaged.open_image()
    assert embedded.is_embedded("data:image/png;base64,AAAA")


def test_the_examples_in_docstrings_hold():
    import doctest

    for module in (parse, fields):
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 0
