"""A hundred hostile texts in every field that reaches a terminal, a file or a picture: nothing arrives raw."""

from __future__ import annotations

import csv
import json
import re
import warnings
from contextlib import suppress

import pytest
from PIL import Image

from hostile import VALUES, raw, sayable
from official import prepare
from ressa.cli.lines import Lines
from ressa.cli.terminal import bars, quiet, show
from ressa.errors import MOST, RessaError, RessaWarning, printable, shown, to_json, unknown
from ressa.evaluation.summary import read_answers
from ressa.files.folders import check_output
from ressa.pipeline.recipe import Recipe, build
from ressa.preparation.work import file_stem
from ressa.pruning.settings import Prune
from ressa.reporting import comparison
from ressa.reporting.picture import picture
from ressa.reporting.table import by_kind, plain

SAYABLE = [value for value in VALUES if sayable(value)]
FILLED = [value if value.strip() else f"x{value}" for value in SAYABLE]  # a question may not be blank


def test_there_are_a_hundred_and_most_of_them_are_raw():
    assert len(set(VALUES)) >= 100
    assert sum(bool(raw(value)) for value in VALUES) >= 50


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_what_is_shown_is_one_line_without_anything_raw(value):
    for text in (
        printable(value),
        shown(value),
        shown([value]),
        str(RessaError(value)),
        str(unknown("x", value, [value])),
    ):
        assert not raw(text)
        assert "\n" not in text
        text.encode()  # lone surrogates are spelled out too
    assert printable(printable(value)) == printable(value)
    assert len(str(RessaError(value))) <= MOST + 3


def test_letters_of_every_script_stay_as_they_are():
    for text in ("日本語のテキスト", "שלום", "नमस्ते", "Größe 5 µm²", "🐘", "a  b", "[red]x[/red]", "50 %", r"\x1b"):
        assert printable(text) == text
    assert printable("\u202egpj.exe") == r"\u202egpj.exe"
    assert printable("a\r\nb\tc") == "a b c"


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_json_reads_back_the_same_with_nothing_raw_in_it_and_no_line_but_its_own(value):
    text = to_json({value: [value]}, indent=1)
    assert json.loads(text) == {value: [value]}
    assert not raw(text)
    assert len(to_json({value: value}).splitlines()) == 1
    assert to_json({"a": "日本語"}) == '{"a": "日本語"}'


def told(ressa, *words: object) -> None:
    """The command is refused by one line."""
    code, out, err = ressa(*words)
    assert (code, out) == (2, ""), (words, err)
    assert err.startswith("ressa: "), (words, err)
    assert not raw(err), words
    assert len(err.splitlines()) == 1, (words, err)


def test_refusals_on_the_command_line_are_one_line(ressa, llava_folder, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for turn, value in enumerate(VALUES):
        here = f"./nowhere/{value}"
        commands = [
            ["inspect", here],
            ["inspect", llava_folder, "--sparsity", f"x{value}"],
            ["prune", llava_folder, "out", "--data", tiny_data, "--method", f"x{value}"],
            ["prune", llava_folder, "out", "--data", here, "--allocation", f"{here}.json"],
            ["evaluate", llava_folder, "--data", here],
            ["evaluate", llava_folder, "--data", tiny_data, "--versus", here],
            ["evaluate", llava_folder, "--data", tiny_data, "--split", f"x{value}"],
            ["run", here],
            ["data", "check", here],
            ["data", "gqa", here, "out"],
            [f"x{value}"],
            ["prune", f"--x{value}"],
        ]
        for words in commands[turn % 6 :: 6]:  # a sixth of them each: all would take a minute
            told(ressa, *words)
    assert list(tmp_path.iterdir()) == []


def test_values_of_recipes_are_refused_by_one_line():
    for value in VALUES:
        for wrong in ({value: 1}, {"seed": value}, {"prune": {"method": value}}, {"prune": {value: 1}}):
            with pytest.raises(RessaError) as error:
                build(Recipe, wrong, value)
            assert not raw(str(error.value))
            assert len(str(error.value)) <= MOST + 3
        with pytest.raises(RessaError):
            build(Prune, {"sparsity": f"x{value}"}, value)


def test_records_in_every_field_reach_terminal_and_files_spelled_out(ressa, llava_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "images" / "a.png")
    short = [value[:200] for value in FILLED]
    records = [
        {"id": f"{i}{v}", "image": "images/a.png", "question": v, "answers": [v], "kind": v}
        for i, v in enumerate(short)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    scores = tmp_path / "scores"
    words = ["evaluate", llava_folder, "--data", tmp_path, "--out", scores, "--max-new-tokens", 1]
    code, out, err = ressa(*words)
    assert code == 0, err
    assert not raw(out)
    assert not raw(err)
    assert "[red]x[/red]" in out
    assert "[/oops]" in out
    for file in scores.iterdir():
        assert not raw(file.read_text(encoding="utf-8")), file
    assert read_answers(scores).keys() == {record["id"].strip() for record in records}
    assert ressa(*words[:-3], tmp_path / "again", *words[-2:], "--versus", scores)[0] == 0


def test_bars_and_tables_are_spelled_out(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    lines = Lines(every=0)
    for value in VALUES:
        lines(value)(1, 2, value)
    one = {"n": 1, "exact_match": 1.0, "metrics": ["exact_match"]}
    scores = {value[:50]: one | {"by_kind": {kind[:50]: one for kind in VALUES}} for value in VALUES[:3]}
    show({}, False, by_kind(scores), *VALUES, *(plain(value) for value in VALUES))
    told = capsys.readouterr()
    assert not raw(told.out.encode("utf-8", "surrogateescape").decode())
    assert not raw(told.err)


def test_warnings_are_spelled_out(capsys):
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("always")
        for value in VALUES:
            warnings.warn(f"{value}!", RessaWarning, stacklevel=1)
    told = capsys.readouterr().err
    assert not raw(told)
    assert len(told.splitlines()) == len(VALUES)


def test_bars_of_a_terminal_are_spelled_out(capsys, monkeypatch):
    for name, told in {"COLUMNS": "300", "LINES": "500", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, told)
    with bars() as bar:
        for value in VALUES:
            bar(value[:50])(1, 2, value[:100])
    err = capsys.readouterr().err
    assert set(raw(err)) <= {"\x1b", "\r"}, "what rich itself says to the terminal"
    assert "\x1b]" not in err
    assert r"\x1b]0;a title" in err
    assert "[red]x[/red]" in err


def test_names_in_a_source_make_plain_names_of_files():
    names = [file_stem(value) for value in VALUES]
    assert len(set(names)) == len(set(VALUES))
    assert all(re.fullmatch(r"images/[0-9a-f]{2}/[\w-]{0,60}-[0-9a-f]{10}", name, re.ASCII) for name in names)


def test_a_report_and_records_of_a_hostile_source_are_plain(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "pictures" / "good.png")
    turns = [[{"from": "human", "value": f"<image>\n{v}"}, {"from": "gpt", "value": v}] for v in FILLED]
    items = [{"id": v, "image": "good.png", "conversations": turn} for v, turn in zip(FILLED, turns, strict=True)]
    items += [{"id": f"bad {i}", "image": v, "conversations": turns[0]} for i, v in enumerate(FILLED)]
    (tmp_path / "source.json").write_text(json.dumps(items))
    images = [str(tmp_path / "pictures")]
    prepare("llava-mix", str(tmp_path / "source.json"), tmp_path / "data", images=images, max_failed=1.0)
    for file in ("report.csv", "train.jsonl", "ressa.json", "SHA256SUMS"):
        assert not raw((tmp_path / "data" / file).read_text(encoding="utf-8")), file
    with (tmp_path / "data" / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(FILLED)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]
    lines = (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(FILLED)


def test_names_of_outputs_lie_where_they_say_or_are_refused_by_one_line(tmp_path):
    inside = tmp_path / "a" / "b" / "c" / "d" / "e"
    inside.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for value in VALUES:
        with suppress(RessaError):
            assert check_output(f"{inside}/{value}") == inside / value.lstrip("/")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "value", ["$x_1^2$", "$$", r"$\frac{$", "a\x1b[31m", "half \ud83d", "<b>&", "日本語", "_hidden"]
)
def test_plots_draw_texts_as_they_are(value, tmp_path):
    one = {"exact_match": 0.5, "kl": 0.1, "blocks": {"model.layers.0": 0.1, value: 0.2}}
    found = {"model": f"/models/{value}", "sparsity": "2:4", "dense": 0.5, "methods": {"wanda": one}}
    assert comparison.plot(found, tmp_path / "blocks.png").stat().st_size > 1000


def test_the_picture_draws_hostile_questions_and_answers(tmp_path):
    (tmp_path / "images").mkdir()
    records, rows = [], []
    for i, value in enumerate(FILLED[:60:4]):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
        records.append({"id": str(i), "image": f"images/{i}.png", "question": value, "answer": "x"})
        rows.append({"id": str(i), "answer": value, "exact_match": i % 2})
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "scores" / "dense").mkdir(parents=True)
    (tmp_path / "scores" / "dense" / "answers.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    result = {"out": str(tmp_path), "scores": {"dense": {"exact_match": 0.5, "n": len(rows)}}}
    made = picture(result, str(tmp_path), "test", tmp_path / "answers.png", columns=5, rows=3)
    assert made
    assert made.read_bytes().startswith(b"\x89PNG")
