"""What docs/data.md says is read, and what refused: every row of its tables is tried, in every table there is."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import official
from official import prepare
from ressa.data.media import NAMES
from ressa.data.media import PICTURES as PICTURES_OF_RECORDS
from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.preparation.pictures import normalise

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
pytestmark = pytest.mark.usefixtures("datasets_cache")


def rows(table: str) -> list[tuple[str, str]]:
    """(first cell, second cell) of the table of that name."""
    text = PAGE.read_text(encoding="utf-8").split(f"<!-- {table} -->\n")[1].split(f"<!-- end of {table} -->")[0]
    return re.findall(r"(?m)^\| (.+?) \| (.+) \|$", text.split("|---|---|\n")[1])


def png(colour: str = "red") -> bytes:
    return official.encoded(Image.new("RGB", (6, 4), colour), "PNG")


@pytest.fixture
def folder(tmp_path):
    official.put(tmp_path / "1.png", png())
    official.put(tmp_path / "sub" / "2.png", png("blue"))
    return tmp_path


def read(source: Any, split: str = "train") -> list[Record] | str:
    """The records, or the one line that says why there are none."""
    try:
        return read_records(source, split)
    except RessaError as error:
        return str(error)


def agrees(found: list[Record] | str, told: str) -> None:
    if told.startswith("refused"):
        assert isinstance(found, str), f"read, though it should be {told}"
        assert "\n" not in found
        return
    assert not isinstance(found, str), found
    assert len(found) == (2 if "two records" in told else 1)
    for record in found:
        assert (record.image is not None) == told.startswith("picture")
        assert "<image" not in (record.question or "")
        if record.image is not None:
            assert record.open_image().getpixel((0, 0)) in ((255, 0, 0), (0, 0, 255))


# ---- records and chats in JSONL --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shown", "told"), rows("records"))
def test_a_form_of_records_is_read_or_refused_as_the_page_says(shown, told, folder):
    line = shown.strip("`").replace("BASE64", base64.b64encode(png()).decode())
    (folder / "train.jsonl").write_text(line + "\n", encoding="utf-8")
    agrees(read(folder), told)


@pytest.mark.parametrize("key", ["messages", "conversations"])
@pytest.mark.parametrize(("shown", "told"), rows("chats"))
def test_a_form_of_chats_is_read_or_refused_as_the_page_says(shown, told, key, folder):
    record = {key: json.loads(shown.strip("`"))}
    if '.png"' not in shown or told == "refused: two pictures":
        record["image"] = "1.png"
    (folder / "train.jsonl").write_text(json.dumps(record), encoding="utf-8")
    found = read(folder)
    agrees(found, told)
    if "Be brief." in told:
        assert found[0].question == "Be brief.\n\n?"
    if "two records" in told:
        assert [(r.id, r.question, r.answers) for r in found] == [
            ("train-1-1", "?", ("red",)),
            ("train-1-2", "And?", ("no",)),
        ]


@pytest.mark.parametrize("name", [*PICTURES_OF_RECORDS, *NAMES])
def test_every_name_of_a_picture_is_read_and_on_the_page(name, folder):
    assert f'"{name}"' in PAGE.read_text(encoding="utf-8") or f"`{name}`" in PAGE.read_text(encoding="utf-8")
    (folder / "train.jsonl").write_text(json.dumps({name: "1.png", "question": "?", "answer": "red"}))
    agrees(read(folder), "picture")


@pytest.mark.parametrize("key", ["videos", "audio", "url", "photo_2", "clip", "Image", "images_list"])
def test_what_might_be_a_picture_is_refused_by_its_name(key, folder):
    value = ["1.png"] if key == "images_list" else "1.mp4" if key == "clip" else "1.png"
    (folder / "train.jsonl").write_text(json.dumps({key: value, "question": "?", "answer": "red"}))
    assert f"train.jsonl:1: field '{key}' is not read" in read(folder)


@pytest.mark.parametrize("mark", ["<image 1>", "<|image_1|>", "<|image|>", "<ImageHere>", "<img>1.png</img>"])
def test_marks_of_pictures_are_taken_away_or_refused_where_there_is_none(mark, folder):
    asked = {"image": "1.png", "question": f"{mark} What?", "answer": "red"}
    (folder / "train.jsonl").write_text(json.dumps(asked))
    assert read(folder)[0].question == "What?"
    del asked["image"]
    (folder / "train.jsonl").write_text(json.dumps(asked))
    assert "marks a picture" in read(folder)


def test_a_mark_behind_a_system_message_or_with_nothing_else_is_refused_too(folder):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>\nWhat?"}]
    chat += [{"role": "assistant", "content": "red"}]
    (folder / "train.jsonl").write_text(json.dumps({"messages": chat}))
    assert "marks a picture" in read(folder)
    for told in ({"question": "<image>", "answer": "red"}, {"caption": "<image>"}):
        (folder / "train.jsonl").write_text(json.dumps({"image": "1.png", **told}))
        assert "no text besides the mark" in read(folder)


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_message_beside_a_chat_is_read_too(key, folder):
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "red"}]
    (folder / "train.jsonl").write_text(json.dumps({key: "Be brief.", "messages": chat}))
    assert read(folder)[0].question == "Be brief.\n\n?"


def test_a_picture_shown_in_a_later_question_is_not_seen_before_it(folder):
    part = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "And this?"}]
    words = ["Hello", "Hi", part, "red"]
    told = [{"role": ("user", "assistant")[n % 2], "content": word} for n, word in enumerate(words)]
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        (folder / "train.jsonl").write_text(json.dumps({"messages": system + told}))
        assert [record.image is not None for record in read(folder)] == [False, True]


# ---- tables ----------------------------------------------------------------------------------------------------------

ASKED = {"question": ["?"], "answer": ["red"]}


def _image_table(images: Any, feature: Any) -> datasets.Dataset:
    features = {"image": feature, "question": datasets.Value("string"), "answer": datasets.Value("string")}
    return datasets.Dataset.from_dict({"image": [images], **ASKED}, features=datasets.Features(features))


def _arrow(images: pa.Array) -> pa.Table:
    return pa.table({"image": images, "question": ["?"], "answer": ["red"]})


def _chat() -> datasets.Dataset:
    text = datasets.Value("string")
    part = {"type": text, "text": text, "image": datasets.Image()}
    features = datasets.Features({"messages": datasets.List({"role": text, "content": datasets.List(part)})})
    asked = [{"type": "image", "text": None, "image": CELL}, {"type": "text", "text": "?", "image": None}]
    told = [{"role": "user", "content": asked}]
    told += [{"role": "assistant", "content": [{"type": "text", "text": "red", "image": None}]}]
    return datasets.Dataset.from_dict({"messages": [told]}, features=features)


CELL = {"bytes": png(), "path": None}
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
VIDEO = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TABLES = {
    "`Image`": lambda: _image_table(CELL, datasets.Image()),
    "`List(Image)`": lambda: _image_table([CELL], datasets.List(datasets.Image())),
    "`List(Image)` of two": lambda: _image_table([CELL, CELL], datasets.List(datasets.Image())),
    "`List(Image)` of none": lambda: _image_table([], datasets.List(datasets.Image())),
    "`struct<bytes, path>`": lambda: _arrow(pa.array([CELL], STRUCT)),
    "`binary`": lambda: _arrow(pa.array([png()], pa.binary())),
    "`list<binary>`": lambda: _arrow(pa.array([[png()]], pa.list_(pa.binary()))),
    "base64": lambda: _arrow(pa.array([base64.b64encode(png()).decode()])),
    "path": lambda: _arrow(pa.array(["1.png"])),
    "`Image` in a part of `messages`": _chat,
    "`Video`": lambda: pa.table({"video": pa.array([{"bytes": b"film", "path": "1.mp4"}], VIDEO), **ASKED}),
    "null": lambda: _arrow(pa.array([None], STRUCT)),
}


def _parquet(table: Any, path: Path) -> Path:
    official.put(path, b"")
    table.to_parquet(str(path)) if isinstance(table, datasets.Dataset) else pq.write_table(table, path)
    return path


@pytest.mark.parametrize(("shown", "told"), rows("tables"))
def test_a_column_of_pictures_is_read_or_refused_as_the_page_says_wherever_it_lies(shown, told, folder):
    table = TABLES[shown]()
    for name in ("train-00000-of-00001.parquet", "data/train-00000-of-00001.parquet", "train.parquet"):
        path = _parquet(table, folder / name)
        if shown != "path" or path.parent == folder:
            agrees(read(path), told)
        agrees(read(folder), told)
        path.unlink()
    loaded = table if isinstance(table, datasets.Dataset) else datasets.Dataset(table)
    loaded.save_to_disk(str(folder / "saved"))
    if shown == "path":
        official.put(folder / "saved" / "1.png", png())
        assert "cast the column" in read(loaded)
    else:
        agrees(read(loaded), told)
    agrees(read(folder / "saved"), told)


def test_every_kind_of_column_is_on_the_page():
    assert list(TABLES) == [shown for shown, _ in rows("tables")]


def test_labels_are_read_as_their_names_in_answers_kinds_and_lists():
    label = datasets.ClassLabel(names=["owl", "cat"])
    features = {"question": datasets.Value("string"), "answer": label, "kind": label}
    told = {"question": ["?", "?"], "answer": [1, 0], "kind": [0, None]}
    records = read(datasets.Dataset.from_dict(told, features=datasets.Features(features)))
    assert [(r.answers, r.kind) for r in records] == [(("cat",), "owl"), (("owl",), None)]
    features = datasets.Features({"question": datasets.Value("string"), "answers": datasets.List(label)})
    records = read(datasets.Dataset.from_dict({"question": ["?"], "answers": [[1, 1, 0]]}, features=features))
    assert records[0].answers == ("cat", "cat", "owl")
    features = datasets.Features({"question": datasets.Value("string"), "answer": label})
    assert '"answer" is missing' in read(datasets.Dataset.from_dict({"question": ["?"], "answer": [-1]}, features))


def test_whole_numbers_beside_nulls_are_whole_and_nan_is_no_answer(folder):
    table = pa.table({"question": ["a", "b"], "answer": pa.array([2.0, 0.5])})
    assert [r.answers for r in read(_parquet(table, folder / "train.parquet"))] == [("2",), ("0.5",)]
    table = pa.table({"question": ["a"], "answer": pa.array([float("nan")])})
    assert '"answer" is missing' in read(_parquet(table, folder / "train.parquet"))


def test_pictures_of_a_table_are_not_kept_in_memory_by_their_records():
    cell = read(TABLES["`Image` in a part of `messages`"]())[0].image
    assert cell.at == (0, "content", 0, "image")
    assert png() not in vars(cell).values()


# ---- pictures --------------------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def deep(top: float, kind: Any, form: str = "TIFF", **options: Any) -> bytes:
    return official.encoded(Image.fromarray((RAMP * top).astype(kind)), form, **options)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _clear(mode: str, form: str = "PNG", **options: Any) -> bytes:
    return official.encoded(Image.new("RGBA", (4, 4), 0).convert(mode), form, **options)


def _colours(mode: str, form: str = "PNG") -> bytes:
    return official.encoded(Image.new("RGB", (4, 4), "white").convert(mode), form)


# Turned by a quarter, and a resolution of a type that Pillow reads but cannot write.
BAD_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x01\0\0\0\x01\x07\0\0\0\0\0\0\0"


FRAMES = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]
MOVING = {"save_all": True, "append_images": FRAMES[1:]}
EVEN, WHITE = 127.5, 255.0  # the mean of a ramp from black to white; of what should be white
PICTURES: dict[str, list[tuple[bytes, float]]] = {
    "8 bits: grey, palette, RGB, CMYK; 1 bit": [
        *((_colours(mode), WHITE) for mode in ("L", "P", "RGB", "1")),
        (_colours("CMYK", "TIFF"), WHITE),
        (_colours("CMYK", "JPEG"), WHITE),
    ],
    "transparent": [
        *((_clear(mode), WHITE) for mode in ("RGBA", "LA")),
        (_clear("RGBA", "WEBP", lossless=True), WHITE),
        (_clear("P", transparency=0), WHITE),
        (_clear("P", "GIF", transparency=0), WHITE),
        (_clear("RGB", transparency=(0, 0, 0)), WHITE),
        (_clear("L", transparency=0), WHITE),
        (official.encoded(Image.new("I;16", (4, 4), 7), "PNG", transparency=7), WHITE),
    ],
    "animated, several pages": [
        (official.encoded(FRAMES[0], form, **MOVING), WHITE) for form in ("GIF", "PNG", "WEBP", "TIFF")
    ],
    "16-bit grey PNG, TIFF, PGM": [
        *((deep(65535, np.uint16, form), EVEN) for form in ("PNG", "TIFF", "PPM")),
        (deep(65535, np.uint16, tiffinfo={262: 0}), EVEN),
    ],
    "16-bit signed TIFF": [(deep(32767, np.uint16, tiffinfo={339: 2}), EVEN)],
    "PGM of another range": [(b"P5 16 16 1023\n" + (RAMP * 1023).astype(">u2").tobytes(), EVEN)],
    "32-bit integer TIFF": [(deep(top, np.int32), EVEN) for top in (255, 65535, 2**31 - 1)],
    "float TIFF, up to 1": [(deep(1, np.float32), EVEN), (deep(1.005, np.float32), EVEN)],
    "float TIFF, beyond": [(deep(255, np.float32), EVEN), (deep(65535, np.float32), EVEN)],
    "damaged EXIF": [
        (official.encoded(Image.new("RGB", (4, 4), "white"), exif=exif), WHITE)
        for exif in (BAD_EXIF, b"Exif\0\0", b"Exif\0\0MM\0*", b"Exif\0\0no TIFF")
    ],
    "32-bit, negative or not finite": [(deep(t, k), 0) for t, k in ((-9, np.int32), (-1, "f4"), (np.nan, "f4"))],
    "32-bit, its greatest number below a quarter of its range": [(deep(3, np.int32), 0), (deep(4095, np.int32), 0)],
    "truncated, empty": [(png()[:50], 0), (b"", 0), (official.odd("truncated.jpg", 1), 0)],
    "more pixels than Pillow's limit": [(official.enormous(60_000, 50_000), 0)],
    "EPS, SVG, HEIC, AVIF": [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 0),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 0),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", 0),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", 0),
    ],
}


@pytest.mark.parametrize(("shown", "told"), rows("pictures"))
def test_a_picture_is_opened_or_refused_as_the_page_says_by_its_record_and_by_preparation(shown, told, folder):
    for n, (data, mean) in enumerate(PICTURES[shown]):
        official.put(folder / "x", data)
        (folder / "train.jsonl").write_text('{"image": "x", "caption": "red"}')
        record = read_records(folder)[0]
        source = official.dump(folder / "mix.json", [{"image": "x", "conversations": _turns("?", "red")}])
        if told.startswith("refused"):
            with pytest.raises(RessaError, match=r"image .* (cannot be read|larger than)") as caught:
                record.open_image()
            assert "\n" not in str(caught.value)
            assert "cannot be used" in official.refusal("llava-mix", str(source), folder / f"{n}", images=[str(folder)])
            continue
        prepare("llava-mix", str(source), folder / f"made-{n}", images=[str(folder)])
        for image in (record.open_image(), read_records(folder / f"made-{n}")[0].open_image()):
            assert (image.mode, image.size) == ("RGB", opened(data).size)
            assert abs(np.asarray(image).mean() - mean) < 1


def test_a_picture_is_turned_as_long_as_its_exif_says_how_whatever_else_it_says(folder):
    official.put(folder / "x", official.encoded(Image.new("RGB", (6, 4)), exif=BAD_EXIF))
    (folder / "train.jsonl").write_text('{"image": "x", "caption": "red"}')
    assert read_records(folder)[0].open_image().size == (4, 6)
    assert opened(normalise((folder / "x").read_bytes()).data).size == (4, 6)


def test_every_kind_of_picture_is_on_the_page():
    assert list(PICTURES) == [shown for shown, _ in rows("pictures")]


# ---- conversations to be prepared ------------------------------------------------------------------------------------


def _turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(said)]


@pytest.mark.parametrize("written", ["an array", "lines", "an array behind a BOM", "lines behind a BOM"])
def test_a_form_of_conversations_is_prepared_or_skipped_as_the_page_says(written, folder):
    table = rows("conversations")
    lines = [shown.strip("`") for shown, _ in table]
    text = "\n".join(lines) if "lines" in written else f"[{', '.join(lines)}]"
    source = official.put(folder / "mix.json", text.encode("utf-8-sig" if "BOM" in written else "utf-8"))
    told = prepare("llava-mix", str(source), folder / "out", images=[str(folder)])
    good = [outcome for _, outcome in table if outcome.startswith("read")]
    assert told["records"] == {"train": len(good)}
    assert told["skipped"] == {outcome: 1 for _, outcome in table if not outcome.startswith("read")}
    records = read_records(folder / "out")
    assert {record.answers for record in records} == {("red",)}
    assert {record.question for record in records} == {"?", "Be brief.\n\n?"}


def test_a_line_of_conversations_that_is_malformed_is_named(folder):
    good = json.dumps({"image": "1.png", "conversations": _turns("?", "red")})
    source = official.put(folder / "mix.jsonl", f"\ufeff{good}\n{good[:-1]},}}\n{good}\n".encode())
    assert "mix.jsonl:2: malformed JSON at column" in official.refusal("llava-mix", str(source), folder / "out")


def test_a_folder_of_conversations_is_told_the_command_that_makes_records_of_them(folder):
    source = official.dump(folder / "mix.json", [{"image": "1.png", "conversations": _turns("?", "red")}])
    assert f"ressa data llava-mix {source} OUT --images {folder}" in read(folder)
    assert f"ressa data llava-mix {source} OUT --images {folder}" in read(source)
