import json
import os
import time
import warnings

import pytest
from PIL import Image

from ressa.data.images import GreyImage
from ressa.data.records import read_records
from ressa.errors import RessaError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "images" / "a.png")
    return tmp_path


def write(folder, *records, name="train.jsonl"):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def refusal(folder, *records, **options):
    """The one line that reading these records ends with."""
    with pytest.raises(RessaError) as caught:
        read_records(write(folder, *records, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


ASKED = {"image": "images/a.png", "question": "What colour?", "answer": "red"}


def test_a_question_record_gives_its_question_answer_kind_and_rgb_picture(folder):
    record = read_records(write(folder, ASKED | {"kind": "colour", "id": 7}))[0]
    assert (record.id, record.question, record.answers, record.kind) == ("7", "What colour?", ("red",), "colour")
    assert record.open_image().mode == "RGB"
    assert record.open_image().getpixel((0, 0)) == (255, 0, 0)


def test_a_caption_record_has_its_caption_as_target(folder):
    record = read_records(write(folder, {"image": "images/a.png", "caption": "a red field"}))[0]
    assert (record.question, record.answers, record.target) == (None, (), "a red field")


def test_a_prefix_is_the_beginning_of_its_caption(folder):
    told = {"image": "images/a.png", "prefix": "a red", "caption": "field"}
    record = read_records(write(folder, told))[0]
    assert (record.prefix, record.question, record.target) == ("a red", None, "field")
    assert '"prefix" must be a text' in refusal(folder, told | {"prefix": 3})


def test_of_several_answers_the_commonest_is_the_target_and_all_are_references(folder):
    answers = [{"answer": "red", "answer_confidence": "yes"}, {"answer": "crimson"}, {"answer": "crimson"}]
    record = read_records(write(folder, {"image": "images/a.png", "question": "?", "answers": answers}))[0]
    assert record.references == ("red", "crimson", "crimson")
    assert record.target == "crimson"


def test_of_equally_common_answers_the_first_is_the_target(folder):
    record = read_records(write(folder, {"question": "?", "answers": ["b", "a", "a", "b"]}))[0]
    assert record.target == "b"


def test_chat_messages_give_question_answer_and_picture(folder):
    content = [{"type": "image", "image": "images/a.png"}, {"type": "text", "text": "What colour?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    inline = read_records(write(folder, {"messages": messages}))[0]
    content[0] = {"type": "image"}
    beside = read_records(write(folder, {"messages": messages, "images": ["images/a.png"]}))[0]
    for record in (inline, beside):
        assert (record.question, record.answers) == ("What colour?", ("red",))
        assert record.open_image().size == (6, 4)


def test_text_alone_is_a_record_without_question_and_picture(folder):
    record = read_records(write(folder, {"text": "Owls are birds."}))[0]
    assert (record.question, record.image, record.target) == (None, None, "Owls are birds.")


def test_blank_lines_are_skipped_and_ids_name_the_line(folder):
    records = read_records(write(folder, ASKED, "", ASKED))
    assert [r.id for r in records] == ["train-1", "train-3"]


def test_repeated_ids_are_made_unique(folder):
    records = read_records(write(folder, ASKED | {"id": "x"}, ASKED | {"id": "x"}, ASKED | {"id": "x-2"}))
    assert len({r.id for r in records}) == 3


def test_one_jsonl_file_can_be_named_and_its_pictures_lie_beside_it(folder):
    write(folder, ASKED, name="mine.jsonl")
    assert read_records(folder / "mine.jsonl")[0].open_image().size == (6, 4)


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ('{"image": "images/a.png", ', "malformed JSON"),
        ("[1]", "object in braces"),
        ("[" * 100_000, "malformed JSON"),
        ({"image": "images/a.png", "question": "?"}, '"answer"'),
        ({"image": "images/a.png", "question": "?", "answer": "  "}, '"answer"'),
        ({"image": "images/a.png", "question": "?", "answers": []}, '"answers"'),
        ({"image": "images/a.png", "question": "?", "answers": ["red", ""]}, '"answers"'),
        ({"image": "images/a.png", "question": "?", "answer": {"a": 1}}, '"answer"'),
        ({"image": "images/a.png", "question": "", "answer": "red"}, '"question"'),
        ({"image": "images/a.png", "answer": "red"}, '"question"'),
        ({"image": "images/a.png"}, '"answer" or "caption"'),
        ({"image": "images/a.png", "caption": 3}, '"caption"'),
        ({"caption": "a red field"}, '"image"'),
        ({"image": 3, "question": "?", "answer": "red"}, '"image"'),
        ({"imagepath": "images/a.png", "question": "?", "answer": "red"}, "imagepath"),
        ({"images": ["images/a.png"] * 2, "question": "?", "answer": "red"}, '"images"'),
        ({"messages": [{"role": "user", "content": "?"}]}, '"messages"'),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]}, '"messages"'),
    ],
)
def test_a_wrong_record_is_refused_with_file_line_and_field(folder, record, named):
    message = refusal(folder, ASKED, record)
    assert f"{folder / 'train.jsonl'}:2: " in message
    assert named in message


def test_the_users_own_text_cannot_break_the_line_of_an_error(folder):
    assert len(refusal(folder, {"image": "x\ny" * 500, "question": "?", "answer": "red"})) < 400


def test_text_that_is_not_utf8_is_refused(folder):
    (folder / "train.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(RessaError, match=r"train\.jsonl:1: not UTF-8"):
        read_records(folder)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_dataset_is_refused(folder, content):
    (folder / "train.jsonl").write_text(content)
    with pytest.raises(RessaError, match="no records"):
        read_records(folder)


def test_a_missing_split_is_refused_with_the_splits_there_are(folder):
    write(folder, ASKED, name="validation.jsonl")
    with pytest.raises(RessaError, match=r"no test\.jsonl .*validation"):
        read_records(folder, "test")


def test_a_missing_folder_is_refused():
    with pytest.raises(RessaError, match="no such data folder"):
        read_records("/nowhere/at/all")


@pytest.mark.parametrize("path", ["../secret.png", "images/../../secret.png", "images\\..\\..\\secret.png", ".."])
def test_a_picture_outside_the_folder_is_refused(folder, path):
    Image.new("RGB", (2, 2)).save(folder.parent / "secret.png")
    assert "leaves the data folder" in refusal(folder, ASKED | {"image": path})


def test_an_absolute_picture_path_is_refused_even_inside_the_folder(folder):
    assert "leaves the data folder" in refusal(folder, ASKED | {"image": str(folder / "images/a.png")})


def test_a_symbolic_link_out_of_the_folder_is_refused_file_or_directory(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (2, 2)).save(outside / "secret.png")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    for path in ("link.png", "linked/secret.png"):
        assert "leaves the data folder" in refusal(folder, ASKED | {"image": path})


def test_a_symbolic_link_inside_the_folder_is_followed(folder):
    (folder / "b.png").symlink_to(folder / "images" / "a.png")
    assert read_records(write(folder, ASKED | {"image": "b.png"}))[0].open_image().size == (6, 4)


def test_a_linked_data_folder_is_a_data_folder(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "data"
    link.symlink_to(folder)
    write(folder, ASKED)
    assert read_records(link)[0].open_image().size == (6, 4)


@pytest.mark.parametrize("path", ["images/b.png", "nowhere/b.png", "images/" + "b" * 5000 + ".png", "a\0b"])
def test_a_missing_picture_is_refused_by_name_and_line_when_reading(folder, path):
    message = refusal(folder, ASKED, ASKED | {"image": path})
    assert "train.jsonl:2: image" in message
    assert "does not exist" in message or "not a file name" in message


def test_a_directory_or_a_pipe_is_no_picture(folder):
    os.mkfifo(folder / "pipe.png")
    for path in ("images", "pipe.png"):
        assert "is not a file" in refusal(folder, ASKED | {"image": path})


def test_a_url_is_not_fetched(folder):
    assert "downloads nothing" in refusal(folder, ASKED | {"image": "https://example.org/a.png"})


def damaged(folder, name, data):
    (folder / name).write_bytes(data)
    return read_records(write(folder, ASKED, ASKED | {"image": name}))[1]


def test_damaged_pictures_are_refused_when_opened_naming_file_and_record(folder):
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    noise.save(folder / "noise.png")
    noise.save(folder / "noise.jpg")
    png, jpeg = (folder / "noise.png").read_bytes(), (folder / "noise.jpg").read_bytes()
    flipped = png[:200] + bytes(255 - b for b in png[200:300]) + png[300:]
    for data in (b"", b"no picture", png[:40], png[: len(png) // 2], flipped, jpeg[: len(jpeg) // 2]):
        with pytest.raises(RessaError, match=r"train\.jsonl:2: image .*broken.*cannot be read") as caught:
            damaged(folder, "broken", data).open_image()
        assert "\n" not in str(caught.value)


def test_postscript_is_not_run(folder):
    with pytest.raises(RessaError, match="cannot be read"):
        damaged(folder, "a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n").open_image()


@pytest.mark.parametrize("limit", [23, 11])  # Pillow only warns below twice its limit
def test_a_decompression_bomb_is_an_error_and_no_warning(folder, monkeypatch, limit):
    record = read_records(write(folder, ASKED))[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(RessaError, match=r"train\.jsonl:1: image .*larger than"):
            record.open_image()
    assert heard == []


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_every_mode_open_as_rgb(folder, mode):
    name = "m.tiff" if mode == "CMYK" else "m.png"
    Image.new("RGB", (5, 3), "white").convert(mode).save(folder / name)
    image = read_records(write(folder, ASKED | {"image": name}))[0].open_image()
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_pictures_are_opened_lazily(folder, monkeypatch):
    write(folder, ASKED)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened while reading"))
    read_records(folder)


def test_a_grey_picture_has_the_size_of_its_original(folder):
    record = read_records(write(folder, ASKED))[0]
    grey = GreyImage(record.image)
    assert grey.open().size == record.open_image().size
    assert grey.open().getcolors() == [(24, (128, 128, 128))]
    assert grey.identity() != record.image.identity()


def test_a_hundred_thousand_records_would_be_read_within_seconds(folder):
    for i in range(200):
        (folder / "images" / f"{i}.png").write_bytes(b"x")
    n = 10_000
    write(folder, *({"image": f"images/{i % 200}.png", "question": "?", "answer": str(i)} for i in range(n)))
    started = time.process_time()
    assert len(read_records(folder)) == n
    assert time.process_time() - started < 1.5  # 0.1 s on an idle machine


def test_answers_may_be_missing_where_something_else_is_to_give_them(folder):
    bare = {"image": "images/a.png"}
    counted = {**bare, "question": "How many?", "answer": 0}
    rows = [{**bare, "question": "What?"}, bare, counted, {**bare, "question": "Which?", "answers": ["it"]}]
    found = read_records(write(folder, *rows), unlabelled=True)
    assert [(r.question, r.answers, r.caption) for r in found] == [
        ("What?", (), None),
        (None, (), ""),
        ("How many?", ("0",), None),
        ("Which?", ("it",), None),
    ]
    assert "answer" in refusal(folder, rows[0])
    assert "caption" in refusal(folder, bare)


def test_a_folder_of_pictures_alone_is_a_record_for_each(folder):
    (folder / "b.JPG").write_bytes((folder / "images" / "a.png").read_bytes())
    (folder / "notes.txt").write_text("no picture")
    found = read_records(folder, unlabelled=True)
    assert [(record.id, record.caption) for record in found] == [("b.JPG", ""), ("images/a.png", "")]
    assert found[1].open_image().size == (6, 4)
    with pytest.raises(RessaError, match=r"no train\.jsonl"):
        read_records(folder)
    with pytest.raises(RessaError, match=r"splits found there: other"):
        read_records(write(folder, ASKED, name="other.jsonl"), unlabelled=True)
