"""The command line. Twelve wrong uses: each one helpful line, exit code 2, nothing written. And the right uses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer

import pico
from ressa import cli
from ressa.evaluation.settings import Evaluate
from ressa.inspection.settings import Plan
from ressa.pipeline.recipe import Recipe
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair
from ressa.settings import Runtime


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A data folder of one's own, to break."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def break_record(data: Path, split: str, line: int, change) -> None:
    path = data / f"{split}.jsonl"
    records = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    change(records[line])
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


# ---- twelve wrong uses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["prune", "repair", "evaluate"])
def test_1_a_missing_data_folder(refused, verb, llava_folder, tmp_path):
    where = tmp_path / "nowhere"
    words = {
        "prune": ["prune", llava_folder, tmp_path / "out"],
        "repair": ["repair", llava_folder, tmp_path / "out", "--teacher", llava_folder],
        "evaluate": ["evaluate", llava_folder, "--out", tmp_path / "out"],
    }
    assert f"{where}: no such data folder" in refused(*words[verb], "--data", where)


def test_1_a_missing_picture(refused, llava_folder, data, tmp_path):
    (data / "images" / "3.png").unlink()
    line = refused("prune", llava_folder, tmp_path / "out", "--data", data)
    assert f"{data}/train.jsonl:4: image 'images/3.png' does not exist" in line


def test_1_a_missing_model(refused, data, tmp_path):
    line = refused("prune", tmp_path / "model", tmp_path / "out", "--data", data)
    assert f"{tmp_path}/model: no such model folder" in line


def test_2_a_corrupt_picture(refused, llava_folder, data, tmp_path):
    picture = data / "images" / "3.png"
    picture.write_bytes(picture.read_bytes()[:60])
    line = refused("prune", llava_folder, tmp_path / "out", "--data", data)
    assert f"{data}/train.jsonl:4: image '{picture}' cannot be read" in line


def test_2_a_corrupt_picture_met_in_the_middle_of_evaluation(refused, llava_folder, data):
    picture = data / "images" / "17.png"
    picture.write_bytes(b"no picture")
    line = refused("evaluate", llava_folder, "--data", data, "--max-new-tokens", 2, "--batch-size", 2)
    assert f"image '{picture}' cannot be read" in line


def test_3_an_unknown_method(refused, llava_folder, data, tmp_path):
    line = refused("prune", llava_folder, tmp_path / "out", "--data", data, "--method", "wnda")
    assert "unknown method 'wnda': did you mean 'wanda'?" in line


@pytest.mark.parametrize("text", ["3:2", "2:2", "0:4"])
def test_4_a_pattern_that_keeps_more_than_there_is_or_nothing(refused, llava_folder, data, tmp_path, text):
    line = refused("prune", llava_folder, tmp_path / "out", "--data", data, "--sparsity", text)
    assert f"prune: sparsity '{text}' is neither" in line


def test_5_two_of_four_on_a_width_that_four_does_not_divide(refused, data, tmp_path):
    model = pico.llava(tmp_path / "model", intermediate=62)
    line = refused("prune", model, tmp_path / "out", "--data", data)
    assert re.search(r"2:4 does not fit \S+\.mlp\.down_proj: its 62 inputs are not a multiple of 4", line)


@pytest.mark.parametrize("part", ["sparsity", "vision", "language", "connector"])
def test_6_a_sparsity_of_more_than_everything(refused, llava_folder, data, tmp_path, part):
    line = refused("prune", llava_folder, tmp_path / "out", "--data", data, f"--{part}", "1.2")
    assert "sparsity '1.2' is neither a share" in line


def test_7_an_empty_dataset(refused, llava_folder, data, tmp_path):
    (data / "train.jsonl").write_text("\n")
    line = refused("prune", llava_folder, tmp_path / "out", "--data", data)
    assert f"{data}/train.jsonl" in line
    assert "no records" in line


def test_8_a_record_without_an_answer(refused, llava_folder, data, tmp_path):
    break_record(data, "train", 1, lambda record: record.pop("answer"))
    line = refused("prune", llava_folder, tmp_path / "out", "--data", data)
    assert f'{data}/train.jsonl:2: field "answer" is missing' in line


def test_9_vision_asked_of_a_model_that_has_none(refused, causal_lm_folder, data, tmp_path):
    line = refused("prune", causal_lm_folder, tmp_path / "out", "--data", data, "--vision", "50%")
    assert "text-only model: it has no vision to prune" in line


@pytest.mark.parametrize("verb", ["prune", "repair", "evaluate", "data emoji"])
def test_10_an_output_that_cannot_be_written(refused, verb, llava_folder, data, tmp_path):
    out = tmp_path / "file" / "out"
    out.parent.write_text("in the way")
    words = {
        "prune": ["prune", llava_folder, out, "--data", data],
        "repair": ["repair", llava_folder, out, "--teacher", llava_folder, "--data", data],
        "evaluate": ["evaluate", llava_folder, "--out", out, "--data", data],
        "data emoji": ["data", "emoji", out],
    }
    assert str(tmp_path / "file") in refused(*words[verb])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system here that refuses even root")
@pytest.mark.parametrize("verb", ["prune", "data emoji"])
def test_10_an_output_that_the_system_refuses(refused, verb, llava_folder, data):
    words = ["data", "emoji"] if verb == "data emoji" else ["prune", llava_folder]
    line = refused(*words, "/proc/ressa/out", *(["--data", data] if verb == "prune" else []))
    assert "/proc/ressa/out" in line
    assert "cannot be written" in line


@pytest.mark.parametrize("verb", ["prune", "repair", "data emoji"])
def test_11_an_output_that_is_not_empty(refused, verb, llava_folder, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    words = {
        "prune": ["prune", llava_folder, out, "--data", data],
        "repair": ["repair", llava_folder, out, "--teacher", llava_folder, "--data", data],
        "data emoji": ["data", "emoji", out],
    }
    assert f"{out}: the output folder is not empty" in refused(*words[verb])


def test_12_an_unknown_recipe_key(refused, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"out: {tmp_path}/out\nprune: {{sparsty: 50%}}\n")
    line = refused("run", tmp_path / "recipe.yaml")
    assert f"{tmp_path}/recipe.yaml: prune: unknown key 'sparsty': did you mean 'sparsity'?" in line


def test_12_an_unknown_recipe_key_in_a_process_of_its_own(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"out: {tmp_path}/out\nrepare: {{}}\n")
    words = [sys.executable, "-m", "ressa.cli", "run", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    told = f"ressa: {tmp_path}/recipe.yaml: unknown key 'repare': did you mean 'repair'?"
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_recipe_that_goes_wrong_writes_nothing_either(refused, llava_folder, data, tmp_path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    common = f"model: {llava_folder}\nout: {out}\n"
    for text, told in (
        (f"data: {tmp_path}/nowhere\nprune: {{}}\n", "no such data folder"),
        (f"data: {data}\nprune: {{}}\nevaluate: {{split: tset}}\n", "no tset.jsonl (splits found there: "),
        (f"data: {data}\nrepair: {{}}\n", "add a prune section"),
        ("data: emoji\nprune: {split: trian}\n", "unknown split 'trian': did you mean 'train'?"),
    ):
        recipe.write_text(common + text)
        assert told in refused("run", recipe)


def test_a_line_break_in_a_name_does_not_break_the_line(refused, tmp_path):
    assert "a b: cannot be read" in refused("run", tmp_path / "a\nb")


def test_the_command_is_named_where_a_setting_is_wrong(refused, llava_folder, data, tmp_path):
    line = refused("prune", llava_folder, tmp_path / "out", "--data", data, "--samples", 0)
    assert line == "ressa: prune: samples: 0 must be at least 1\n"


# ---- help ------------------------------------------------------------------------------------------------------------


def commands() -> dict[str, typer.core.TyperCommand]:
    found, groups = {}, [("", typer.main.get_command(cli.app))]
    for above, group in groups:
        for name, command in group.commands.items():
            path = f"{above} {name}".strip()
            if hasattr(command, "commands"):
                groups.append((path, command))
            else:
                found[path] = command
    return found


def test_the_commands_are_these():
    data = ["cc3m", "check", "coco", "coco-captions", "dataset", "emoji", "flickr30k", "gqa", "llava-mix"]
    data += ["sharegpt4v", "vg"]
    verbs = ["bench", "card", "compare", "demo", "evaluate", "export", "inspect", "prune", "repair", "report", "run"]
    verbs += ["study"]
    assert sorted(commands()) == sorted([*(f"data {name}" for name in data), *verbs])


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_every_option_is_explained(name):
    command = commands()[name]
    assert command.help
    for option in command.params:
        assert option.help, f"{name} {option.name}"


@pytest.mark.parametrize(
    ("verb", "section"),
    [("prune", Prune), ("repair", Repair), ("evaluate", Evaluate), ("inspect", Plan)]
    + [(name, Runtime) for name in ("prune", "repair", "evaluate", "compare", "run", "demo")],
)
def test_every_setting_of_a_recipe_is_an_option_with_the_same_words_and_default(verb, section):
    options = {option.name: option for option in commands()[verb].params}
    for field in fields(section):
        assert options[field.name].help == field.metadata["help"]
        assert options[field.name].default == field.default


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from ressa import cli; sys.argv = ['ressa', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("prune", "repair", "evaluate", "inspect", "run", "demo", "data"))


# ---- right uses ------------------------------------------------------------------------------------------------------


def test_prune_repair_and_evaluate_tell_machines_what_they_did(ressa, llava_folder, tiny_data, tmp_path):
    pruned, repaired, data = tmp_path / "pruned", tmp_path / "repaired", ["--data", tiny_data]
    code, out, err = ressa("prune", llava_folder, pruned, *data, "--samples", 4, "--connector", "50%", "--json")
    told = json.loads(out)
    assert (code, told) == (0, json.loads((pruned / "ressa.json").read_text()))
    assert told["parts"]["connector"]["sparsity"] == told["parts"]["vision"]["sparsity"] == 0.5
    assert err == "", "what ends within ten seconds says nothing of its progress in a log"
    teacher = ["--teacher", llava_folder, "--steps", 2, "--no-train-norms"]
    code, out, _ = ressa("repair", pruned, repaired, *teacher, *data, "--json")
    told = json.loads(out)
    assert (code, told["steps"], told["arguments"]["train_norms"]) == (0, 2, False)
    assert told == json.loads((repaired / "ressa.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned", "repaired"]
    short = ["--max-new-tokens", 2, "--against", llava_folder, "--out", tmp_path / "scores"]
    code, out, _ = ressa("evaluate", repaired, *data, *short, "--json")
    told = json.loads(out)
    assert (code, told["n"], sorted(told["by_kind"])) == (0, 8, ["colour", "shape"])
    assert told["kl"] > 0
    assert {"command": "evaluate"} | told == json.loads((tmp_path / "scores" / "scores.json").read_text())


def test_prune_and_evaluate_tell_people_what_they_did(ressa, llava_folder, tiny_data, tmp_path):
    out = tmp_path / "pruned [red]"  # brackets are no colours
    code, told, _ = ressa("prune", llava_folder, out, "--method", "magnitude", "--sparsity", "50%", "--vision", 0)
    assert code == 0
    assert re.fullmatch(r"language: 50\.0% of [\d,]+ weights in 14 matrices are zero\n", told)
    code, told, _ = ressa("evaluate", out, "--data", tiny_data, "--limit", 4, "--max-new-tokens", 2, "--grey")
    assert code == 0
    assert "pruned [red]" in told
    assert "VQA accuracy" in told
    assert "(4 questions)" in told


def test_inspect_prints_parts_and_reasons_whole_in_eighty_columns(ressa, llava_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, told, err = ressa("inspect", llava_folder)
    assert (code, err) == (0, "")
    assert max(map(len, told.splitlines())) <= 80 or str(llava_folder) in told
    assert re.search(r"connector +2,112 +1 +2 +2,048 +0\.0% +if asked", told)
    assert "language: model.language_model, lm_head" in told
    for reason in ("output head", "embedding", "patch embedding: only if asked"):
        assert reason in told
    assert "…" not in told


def test_inspect_tells_what_a_pattern_does_not_fit(ressa, llava_folder):
    code, out, _ = ressa("inspect", llava_folder, "--sparsity", "1:3", "--json")
    told = json.loads(out)
    assert code == 0
    assert set(told["parts"]) == {"vision", "connector", "language"}
    assert told["kept"]["lm_head"] == "output head"
    assert all("32 inputs are not a multiple of 3" in why or "64" in why for why in told["unfit"].values())
    assert len(told["unfit"]) == 28
    assert "1:3 does not fit" in ressa("inspect", llava_folder, "--sparsity", "1:3")[1]


def test_data_emoji_writes_a_folder(ressa, tmp_path):
    sizes = ["--train", 3, "--validation", 1, "--test", 2, "--questions", 2]
    code, told, _ = ressa("data", "emoji", tmp_path / "data", *sizes)
    assert (code, told) == (0, f"{tmp_path}/data: 3 + 1 + 2 + 2 scenes\n")
    assert len(list((tmp_path / "data" / "images").iterdir())) == 8


def test_demo_is_the_shipped_recipe_in_a_folder_of_ones_choice(ressa, monkeypatch, tmp_path):
    run: list[Recipe] = []
    monkeypatch.setattr(cli, "_run", run.append)
    assert ressa("demo", "--out", tmp_path / "here")[0] == 0
    assert (run[0].model, run[0].out) == ("demo", str(tmp_path / "here"))
    assert run[0].repair
    assert run[0].prune.sparsity == "2:4"


def test_libraries_are_as_talkative_afterwards_as_before():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with cli.quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--adapter", "lore", "unknown adapter 'lore': did you mean 'lora'?"),
        ("--objective", "papers", "unknown objective 'papers': did you mean 'paper'?"),
        ("--parts", "vision,speech", "unknown part 'speech'"),
        ("--report-to", "tensorbord", "unknown report_to 'tensorbord': did you mean 'tensorboard'?"),
    ],
)
def test_an_unknown_way_to_repair(refused, llava_folder, data, tmp_path, option, value, told):
    words = ["repair", llava_folder, tmp_path / "out", "--teacher", llava_folder, "--data", data]
    assert told in refused(*words, option, value)
