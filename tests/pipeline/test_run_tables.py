"""What is told of a finished run: its tables in eighty columns, and the picture of answers."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ressa.reporting.picture import picture
from ressa.reporting.table import by_kind, summary


def printed(table) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def test_the_summary_has_a_row_for_each_model_in_eighty_columns(finished):
    _, result = finished
    told = printed(summary(result))
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.split()}
    assert "…" not in told
    for word in ("exact", "dense", "vision", "language", "zeros", "disk"):
        assert word in told.split(), word
    kl = result["scores"]["repaired"]["kl"]
    assert lines["dense"][:1] + lines["dense"][3:5] == ["dense", "0.0%", "0.0%"]
    assert lines["pruned"][4:6] == lines["repaired"][4:6] == ["50.0%", "50.0%"]
    assert lines["repaired"][3] == f"{kl:.3f}"
    weights = {name: float(lines[name][-2 if name == "dense" else -3]) for name in ("dense", "pruned", "repaired")}
    assert weights["pruned"] == weights["repaired"] < weights["dense"]


def test_the_summary_of_a_run_without_scores_has_sizes_only(finished):
    _, result = finished
    told = printed(summary(result | {"scores": {}}))
    assert "exact" not in told
    assert told.count("50.0%") == 4


def test_the_summary_leaves_blank_what_it_cannot_count_of_a_hub_model(finished):
    _, result = finished
    told = printed(summary(result | {"models": result["models"] | {"dense": "somebody/some-model"}}))
    assert "dense" in told


def test_scores_by_kind_have_a_row_for_each_kind_and_a_column_for_each_model(finished):
    _, result = finished
    told = printed(by_kind(result["scores"]))
    assert [line.split()[0] for line in told.splitlines() if "%" in line] == ["colour", "shape"]
    assert all(name in told for name in ("dense", "pruned", "repaired"))


def test_brackets_in_names_and_kinds_are_no_markup(finished):
    _, result = finished
    scores = result["scores"]["dense"]
    odd = scores | {"by_kind": {"[bold]": scores["by_kind"]["colour"]}}
    told = printed(by_kind({"[/x]": odd}))
    assert "[bold]" in told
    assert "[/x]" in told
    assert "[red]" in printed(summary(result | {"out": "runs/[red]"}))


def test_the_picture_is_one_a_person_can_look_at(finished, tmp_path):
    recipe, result = finished
    path = picture(result, recipe.data, "test", tmp_path / "answers.png")
    with Image.open(path) as image:
        assert image.size[0] >= 1000
        assert image.size[1] >= 800
        pixels = image.convert("RGB")
        assert len(pixels.getcolors(maxcolors=1 << 24)) > 100
        reds = pixels.crop((0, 400, image.width, image.height)).getcolors(maxcolors=1 << 24)
        assert (207, 34, 46) in {colour for _, colour in reds}  # a random model answers wrong
    assert path.stat().st_size > 20_000


@pytest.fixture
def answered(tiny_data, tmp_path):
    """A result whose answers can be chosen: {model: {record number: (answer, right)}}."""

    def make(told: dict[str, list[tuple[str, bool]]], records: list[dict]) -> tuple[dict, str]:
        data = tmp_path / "data"
        shutil.copytree(tiny_data, data)
        (data / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        for name, rows in told.items():
            folder = tmp_path / "out" / "scores" / name
            folder.mkdir(parents=True)
            lines = [
                json.dumps({"id": f"test-{i}", "answer": answer, "exact_match": float(right)}, ensure_ascii=False)
                for i, (answer, right) in enumerate(rows, 1)
            ]
            (folder / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        scores = {name: {"n": len(rows), "exact_match": 0.5} for name, rows in told.items()}
        return {"out": str(tmp_path / "out"), "scores": scores}, str(data)

    return make


def chosen(monkeypatch, result: dict, data: str, path: Path) -> list[str]:
    """The questions that the picture shows, in order."""
    seen: list[str] = []
    real = picture.__globals__["_caption"]

    def caption(axes, question, told):
        seen.append(question)
        return real(axes, question, told)

    monkeypatch.setitem(picture.__globals__, "_caption", caption)
    picture(result, data, "test", path)
    return seen


def test_half_of_the_picture_is_what_repair_regained_and_no_picture_comes_twice(answered, monkeypatch, tmp_path):
    # 10 pictures with 3 questions each; repair regains every question about pictures 7, 8 and 9
    records = [
        {"image": f"images/{i}.png", "question": f"Question {i}.{j}?", "answer": "yes"}
        for i in range(10)
        for j in range(3)
    ]
    lost = [i >= 7 for i in range(10) for _ in range(3)]
    told = {
        "dense": [("yes", True)] * 30,
        "pruned": [("no", False) if gone else ("yes", True) for gone in lost],
        "repaired": [("yes", True)] * 30,
    }
    questions = chosen(monkeypatch, *answered(told, records), tmp_path / "a.png")
    pictures = [question.split()[1].split(".")[0] for question in questions]
    assert len(questions) == 8
    assert len(set(pictures)) == 8
    assert set(pictures[:3]) == {"7", "8", "9"}


def test_odd_answers_are_drawn_as_they_are(answered, monkeypatch, tmp_path):
    records = [{"image": "images/0.png", "question": "Is it $5 or $x_{$?\n" + "long " * 60, "answer": "$"}]
    told = {"dense": [("", False)], "pruned": [("$\\frac{$ 漢字 🦉\n\u2028" + "x" * 300, False)]}
    assert len(chosen(monkeypatch, *answered(told, records), tmp_path / "a.png")) == 1
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_records_without_pictures_make_no_picture(answered, tmp_path):
    result, data = answered({"dense": [("yes", True)]}, [{"question": "Is it?", "answer": "yes"}])
    assert picture(result, data, "test", tmp_path / "a.png") is None
    assert not (tmp_path / "a.png").exists()
