"""The page shows what the JSON says, and nothing of data or models is more than text in it."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from made_run import SCRIPT, made_run, scores, write
from safetensors.torch import load_file, save_file

from ressa.errors import RessaError
from ressa.reporting.page.collect import collect
from ressa.reporting.page.gallery import gallery
from ressa.reporting.page.numbers import POINTS, figure_data, verdicts
from ressa.reporting.page.page import report


class Tables(HTMLParser):
    """{caption: rows of cells}, every address, and the text of the whole."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text, self._caption, self._rows, self._into = "", "", [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "xlink:href")]
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
        if tag in ("caption", "th", "td"):
            self._into = tag
        if tag == "caption":
            self._caption = ""

    def handle_endtag(self, tag):
        if tag == "table":
            self.tables[self._caption] = self._rows
        if tag in ("caption", "th", "td"):
            self._into = ""

    def handle_data(self, data):
        self.text += data
        if self._into == "caption":
            self._caption += data
        elif self._into:
            self._rows[-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def made(run, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("page") / "report.html"
    return out, report([run], out)


@pytest.fixture(scope="module")
def page(made) -> str:
    return made[0].read_text(encoding="utf-8")


def rows_of(page: str, caption: str) -> list[dict[str, str]]:
    headers, *rows = Tables(page).tables[caption]
    return [dict(zip(headers, row, strict=True)) for row in rows]


def test_the_table_has_the_numbers_of_the_json_files(run, page):
    rows = rows_of(page, "Every model of this report")
    assert [row["model"] for row in rows] == ["dense", "pruned", "repaired"]
    for row in rows:
        told = json.loads((run / "scores" / row["model"] / "scores.json").read_text())
        low, high = told["intervals"]["exact_match"]
        assert row["exact match (%)"] == f"{100 * told['exact_match']:.1f}"
        assert row["95 % interval"] == f"{100 * low:.1f} to {100 * high:.1f}"
        assert row["KL to dense"] == ("" if told["kl"] is None else f"{told['kl']:.3f}")
        if row["model"] != "dense":
            manifest = json.loads((run / row["model"] / "ressa.json").read_text())
            size = (run / row["model"] / "model.safetensors").stat().st_size
            assert row["made in (s)"] == f"{manifest['seconds']:.1f}"
            assert row["language zeros (%)"] == f"{100 * manifest['parts']['language']['sparsity']:.1f}"
            assert row["on disk (MB)"] == f"{size / 1e6:.1f}"


def test_kinds_and_costs_have_the_numbers_of_the_json_files(run, page):
    told = json.loads((run / "scores" / "pruned" / "scores.json").read_text())
    kinds = {row["kind"]: row for row in rows_of(page, "exact match (%) by kind of question")}
    assert {kind: row["pruned"] for kind, row in kinds.items()} == {
        kind: f"{100 * one['exact_match']:.1f}" for kind, one in told["by_kind"].items()
    }
    cost = next(row for row in rows_of(page, "Time and memory") if row["model"] == "pruned")
    assert (cost["peak memory (MB)"], cost["asked in (s)"], cost["computed in"]) == ("123", "0.8", "float32")


def test_the_markdown_twin_has_the_same_tables(made, page):
    twin = made[0].with_suffix(".md").read_text(encoding="utf-8")
    told = [re.sub(r"\\(.)", r"\1", line) for line in twin.splitlines()]
    tables = Tables(page).tables
    for caption in ("Every model of this report", "exact match (%) by kind of question", "Time and memory", "Versions"):
        for row in tables[caption]:
            assert f"| {' | '.join(row)} |" in told, row
    assert made[1]["verdict"] in twin.replace("\\", "")


def test_the_verdict_is_computed_and_tells_whether_the_zeros_are_the_same(run, made, tmp_path):
    assert made[1]["verdict"].startswith("50% by Wanda costs 50.0 points of exact match, 100.0% → 50.0%")
    assert made[1]["verdict"].endswith("; repair regains 50% of it at the same zeros (75.0%).")
    other = made_run(tmp_path / "other")
    tensors = load_file(other / "repaired" / "model.safetensors")
    tensors["vision_tower.encoder.layers.0.fc1.weight"] = torch.ones(8, 8)
    save_file(tensors, other / "repaired" / "model.safetensors")
    found = collect([other])
    assert "with 43.8% zeros" in verdicts(found)[0]
    assert "other zeros on disk than ressa.json tells" in found.notes[0]


def test_an_interval_of_a_difference_is_told_of_many_questions_only(tmp_path):
    run = made_run(tmp_path / "many")
    for name, right in (("dense", 1.0), ("pruned", 0.0), ("repaired", 1.0)):
        path = run / "scores" / name / "answers.jsonl"
        row = json.loads(path.read_text().splitlines()[0])
        values = [1.0 if n % 2 else right for n in range(40)]
        rows = [row | {"id": f"q{n}", "exact_match": value} for n, value in enumerate(values)]
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        told = json.loads((run / "scores" / name / "scores.json").read_text())
        write(run / "scores" / name / "scores.json", told | {"n": 40, "exact_match": sum(values) / 40})
    half = 100 * 1.96 * (0.25 * 40 / 39) ** 0.5 / 40**0.5
    assert f"costs 50.0 ({50 - half:.1f} to {50 + half:.1f}) points" in verdicts(collect([run]))[0]


def test_zeros_are_counted_in_files_that_name_their_tensors_otherwise(run):
    pruned = next(model for model in collect([run]).models if model.role == "pruned")
    assert {(cell.part, cell.block, cell.matrix, cell.zeros) for cell in pruned.cells} == {
        (part, block, f"fc{n}", 32) for part in ("vision", "language") for block in (0, 1) for n in (1, 2)
    }
    assert not collect([run]).notes


def test_a_folder_whose_tensors_are_cut_otherwise_is_told_by_its_ressa_json_with_a_note(tmp_path):
    run = made_run(tmp_path / "joined")
    save_file({"fused.weight": torch.zeros(8, 64)}, run / "pruned" / "model.safetensors")
    found = collect([run])
    assert found.models[1].sparsity == 0.5
    assert "in another cut" in found.notes[0]


def test_the_page_reaches_for_nothing_outside_itself(page):
    addresses = Tables(page).addresses
    assert addresses
    assert [one for one in addresses if not one.startswith(("#", "data:"))] == []
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_text_of_data_and_models_is_shown_and_never_markup(page):
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert Tables(page).tags.count("script") == 1
    assert "\x1b" not in page
    assert "&lt;b&gt;oval&lt;/b&gt;" in page


def test_hostile_names_are_text_in_the_figures_and_in_the_twin(tmp_path):
    run = made_run(tmp_path / "<img src=x> & $\\frac$")
    told = json.loads((run / "scores" / "pruned" / "scores.json").read_text())
    kinds = {f"{SCRIPT} | $x$": told["by_kind"]["colour"], "]](javascript:x)": told["by_kind"]["shape"]}
    for name in ("dense", "pruned", "repaired"):
        one = json.loads((run / "scores" / name / "scores.json").read_text())
        write(run / "scores" / name / "scores.json", one | {"by_kind": kinds})
    other = made_run(tmp_path / "b", share=0.75)
    report([run, other], tmp_path / "r.html")
    page, twin = (tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()
    assert Tables(page).tags.count("script") == 1
    assert "img" in Tables(page).tags  # of the gallery, each an address of its own
    assert all(one.startswith(("#", "data:")) for one in Tables(page).addresses)
    lines = [line for line in twin.splitlines() if not line.startswith("    ")]  # those of code are text as they are
    assert not [line for line in lines if "<" in line.replace("\\<", "") and "written by" not in line]
    assert "\\<img src=x\\> \\& $\\\\frac$" in twin


def test_the_page_is_small_and_pictures_are_left_out_before_it_is_too_large(run, made, page):
    assert made[1]["bytes"] == len(page.encode()) < 300_000
    assert sum(bool(card.picture) for card in gallery(collect([run]), room=10**6).cards) == 4
    assert not any(card.picture for card in gallery(collect([run]), room=100).cards)


def test_the_gallery_says_of_each_question_what_repair_did(run):
    found = gallery(collect([run]), room=0)
    assert {card.id: card.tags for card in found.cards} == {
        "q0": ("mended", "differ"),
        "q1": ("broke", "differ"),
        "q2": (),
        "q3": ("mended", "differ"),
    }
    assert found.counts == {"mended": 2, "broke": 1, "differ": 3}
    assert found.cards[0].answers == [("dense", "red", True), ("pruned", "blue", False), ("repaired", "red", True)]


def test_a_large_gallery_shows_some_of_each_kind_and_says_how_many_there_are(run):
    found = gallery(collect([run]), room=0, limit=4)
    assert (len(found.cards), found.all) == (4, 4)
    few = gallery(collect([run]), room=0, limit=3)
    assert (len(few.cards), few.all) == (3, 4)


def test_pictures_that_are_gone_leave_their_questions_and_a_note(tmp_path):
    run = made_run(tmp_path / "gone")
    (run / "data").rename(tmp_path / "elsewhere")
    report([run], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "What colour is it?" in page
    assert "<img" not in page
    assert "not here any more" in page


def test_figures_stand_where_they_have_numbers(page, run, tmp_path):
    assert [f'id="figure-{name}"' in page for name in ("sparsity", "bytes", "blocks", "loss", "kinds")] == [
        *(False, False, False, True, True)
    ]
    for n, share in enumerate((0.25, 0.75)):
        made_run(tmp_path / "study" / f"cell{n}", sparsity=f"{share:.0%}", share=share)
    report([tmp_path / "study"], tmp_path / "study.html")
    several = (tmp_path / "study.html").read_text()
    assert 'id="figure-sparsity"' in several
    assert 'id="figure-bytes"' in several
    assert [row["model"] for row in rows_of(several, "Every model of this report")] == [
        *("dense", "cell0: pruned", "cell0: repaired", "cell1: pruned", "cell1: repaired")
    ]


def test_a_comparison_has_its_blocks_and_its_methods_in_order(tmp_path):
    out = tmp_path / "compared"
    made_run(tmp_path / "run")
    (tmp_path / "run" / "pruned").rename(out.parent / "pruned")
    out.mkdir()
    for name in ("wanda", "admm"):
        (out / name).mkdir()
        for file in (tmp_path / "pruned").iterdir():
            (out / name / file.name).write_bytes(file.read_bytes())
        told = json.loads((out / name / "ressa.json").read_text())
        write(out / name / "ressa.json", told | {"arguments": told["arguments"] | {"method": name}})
        scores(out / "scores" / name, "", str(out / name), 4)
        write(out / "scores" / name / "blocks.json", {"model.vision.layers.0": 0.25, "model.text.layers.0": 0.5})
    scores(out / "scores" / "dense", "", "demo", 3)
    write(out / "compare.json", {"methods": {"wanda": {}, "admm": {}}})
    write(out / "stages" / "prune wanda.json", {"key": "k"})
    found = collect([out])
    assert [model.name for model in found.models] == ["dense", "wanda", "admm"]
    assert verdicts(found) == ["At 50%, points of exact match lost from 100.0%: Wanda 50.0, ADMM 50.0."]
    assert figure_data(found)["blocks"][0] == {"model": "wanda", "block": "model.vision.layers.0", "error": 0.25}
    report([out], tmp_path / "r.html")
    rows = rows_of((tmp_path / "r.html").read_text(), "Relative squared error of each block's output")
    assert [row["error"] for row in rows] == ["0.25000", "0.50000"] * 2


def test_model_folders_and_their_scores_apart_are_one_row_each(run):
    named = [run / "pruned", run / "scores" / "pruned", run / "scores" / "dense", run / "repaired"]
    found = collect(named)
    assert [model.role for model in found.models] == ["pruned", "dense", "repaired"]
    assert found.models[0].scored.score == 0.5
    assert found.pruned(found.models[2]) is found.models[0]


def test_the_folder_one_stands_in_has_its_name(run, monkeypatch):
    monkeypatch.chdir(run)
    assert [one.name for one in collect(["."]).runs] == [run.name]
    monkeypatch.chdir(run / "pruned")
    assert [model.name for model in collect(["."]).models] == ["pruned"]


def test_models_that_were_asked_other_questions_are_never_compared(tmp_path):
    run = made_run(tmp_path / "run")
    path = run / "scores" / "dense" / "scores.json"
    write(path, json.loads(path.read_text()) | {"split": "validation"})
    found = collect([run])
    assert found.dense(found.models[1]) is None
    assert "not scored beside its dense original" in verdicts(found)[0]


def test_a_long_loss_curve_keeps_its_ends(tmp_path):
    run = made_run(tmp_path / "run")
    path = run / "repaired" / "ressa.json"
    history = [{"step": step, "loss": 1.0} for step in range(1, 1001)]
    write(path, json.loads(path.read_text()) | {"history": history})
    steps = [row["step"] for row in figure_data(collect([run]))["loss"]]
    assert (len(steps), steps[0], steps[-1]) == (POINTS, 1, 1000)


def test_all_numbers_can_be_taken_from_the_page(run, page):
    links = dict(re.findall(r'download="(\S+)" href="data:[^,]*,([^"]*)"', page))
    told = json.loads(base64.b64decode(links["report.json"]))
    assert [model["scores"]["values"]["exact_match"] for model in told["models"]] == [1.0, 0.5, 0.75]
    assert set(told["figures"]) == {"accuracy", "kinds", "zeros", "blocks", "loss"}
    assert base64.b64decode(links["report.csv"]).decode().splitlines()[0].startswith("model,exact match (%)")


def test_the_same_folders_make_the_same_page(run, made, tmp_path):
    report([run], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == made[0].read_bytes()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "repaired" / "ressa.json").write_text("{"), "is not JSON any more"),
        (lambda run: (run / "repaired" / "ressa.json").write_text("[]"), "is not an object"),
        (
            lambda run: (run / "scores" / "dense" / "scores.json").write_text('{"n": "many"}'),
            "is not what ressa writes",
        ),
        (lambda run: (run / "scores" / "dense" / "answers.jsonl").write_text("{}\n"), "is not what ressa writes"),
        (lambda run: (run / "pruned" / "model.safetensors").write_bytes(b"short"), "damaged safetensors"),
        (lambda run: (run / "compare.json").write_text("[1]"), "is not an object"),
    ],
)
def test_a_faulty_folder_is_one_line_that_names_the_file(spoil, words, tmp_path):
    run = made_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(RessaError, match=words) as refused:
        report([run], tmp_path / "r.html")
    assert str(run) in str(refused.value)
    assert not (tmp_path / "r.html").exists()


def test_what_cannot_be_reported_or_written_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    for folders, out, words in [
        ([], "r.html", "name at least one folder"),
        ([tmp_path / "none"], "r.html", "no such folder"),
        ([tmp_path / "empty"], "r.html", "nothing of ressa in it"),
        ([run], "r.txt", "ends in .html"),
        ([run], "README.html", "no report; name another"),
        ([run], "folder.html", "is a folder"),
    ]:
        with pytest.raises(RessaError, match=words):
            report(folders, tmp_path / out)
    assert (tmp_path / "README.md").read_text() == "mine"
