"""A plan comes from a config alone, says what fits, and what to change where something does not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import ressa.demo
from ressa import plan
from ressa.cli import main
from ressa.errors import RessaError
from ressa.files.text import to_bytes
from ressa.inspection import plan as module
from ressa.methods import METHODS
from ressa.model.load import load

CONFIGS = Path(__file__).parents[1] / "configs"


LLAVA = CONFIGS / "llava-1.5-7b-hf.json"


def test_a_folder_with_only_a_config_and_the_file_itself_are_enough(tmp_path):
    shutil.copy(LLAVA, tmp_path / "config.json")
    told = plan(LLAVA)
    assert told["parameters"] == 7_063_427_072
    assert told["parts"]["language"]["prunable"] == 6_476_005_376
    assert {**plan(tmp_path), "model": ""} == {**told, "model": ""}
    assert [*told["steps"]] == ["load", *(f"prune: {name}" for name in METHODS), "repair"]


def test_counts_are_those_of_the_loaded_model():
    inspected, planned = ressa.inspect("demo")["parts"], plan("demo")["parts"]
    for name, part in inspected.items():
        assert (part["parameters"], part["weights"]) == (planned[name]["parameters"], planned[name]["prunable"])


def test_no_weight_is_read(monkeypatch):
    monkeypatch.setattr("safetensors.safe_open", None)
    monkeypatch.setattr("ressa.model.load.weights", None)
    assert plan("demo")["parameters"] == 3_101_184


def test_sizes_on_disk_are_those_of_the_files():
    told = plan("demo", "2:4")["disk"]
    weights = ressa.demo.EMBEDDED / "model.safetensors"
    assert weights.stat().st_size == pytest.approx(told["bfloat16"]["dense"], rel=0.01)
    pruned = 1_492_992 + 1_078_272
    rest = 3_101_184 - pruned
    assert told["bfloat16"]["sparse"] == pruned * (0.5 * 2 + 1 / 8) + rest * 2
    assert told["float32"]["sparse"] == pruned * (0.5 * 4 + 1 / 8) + rest * 4
    assert told["int8"] == {"dense": pruned + rest * 2, "sparse": pruned * (0.5 + 1 / 8) + rest * 2}
    unstructured = plan("demo", "70%")["disk"]["bfloat16"]["sparse"]
    assert unstructured == pytest.approx(pruned * 0.725 + rest * 2)


def test_pictures_and_tokens_are_read_from_the_config():
    found = {name: plan(CONFIGS / f"{name}.json")["assumed"] for name in ("llava-1.5-7b-hf", "gemma-3-4b-it")}
    assert [(a["patches"], a["tokens"]) for a in found.values()] == [(576, 576 + 64), (4096, 256 + 64)]
    net, _ = load("demo")
    assert plan("demo")["assumed"]["tokens"] == net.config.image_seq_length + 64
    assert plan("demo", tokens=50, patches=9)["assumed"]["patches"] == 9
    assert plan(CONFIGS / "blip2-flan-t5-xl.json")["assumed"]["crossing"]


def test_what_does_not_fit_is_told_with_the_first_change_that_helps():
    steps = plan(LLAVA, memory="16GiB")["steps"]
    assert steps["load"]["fits"]
    assert all(steps[f"prune: {name}"]["fits"] for name in ("magnitude", "wanda", "sparsegpt"))
    small = plan(LLAVA, memory="3GiB", samples=1024)["steps"]
    assert not small["prune: wanda"]["fits"]
    assert small["prune: wanda"]["change"].startswith("--activations disk: ")
    assert small["prune: admm"]["change"].startswith("not even --activations disk --batch-size 1, which takes")
    assert small["prune: wanda"]["device_bytes"] < small["prune: wanda"]["bytes"]
    assert small["prune: magnitude"]["fits"]
    assert not small["load"]["fits"]
    assert plan(LLAVA, memory="8GiB")["steps"]["repair"]["change"].startswith("not even with --teacher-cache DIR")


def test_repair_does_by_itself_what_a_memory_needs():
    roomy, tight = (plan(LLAVA, memory=memory)["steps"]["repair"] for memory in ("1TiB", "32GiB"))
    assert (roomy["way"], roomy["change"], tight["fits"]) == ("", None, True)
    assert "computed again in the backward pass and batches in" in tight["way"]
    assert roomy["flop"] < tight["flop"]
    sizes = [*roomy["ways"].values()]
    assert sizes == sorted(sizes, reverse=True)
    assert roomy["bytes"] == sizes[0]


@pytest.mark.parametrize("name", ["llava-1.5-7b-hf", "instructblip-vicuna-7b"])
def test_models_of_7b_are_repaired_on_80_gb_and_with_the_options_that_are_named_on_24(name):
    at = {memory: plan(CONFIGS / f"{name}.json", memory=memory)["steps"]["repair"] for memory in ("75GiB", "24GiB")}
    assert at["75GiB"]["fits"]
    assert not at["24GiB"]["fits"]
    assert re.match(r"(--dtype bfloat16 )?--teacher-cache DIR \(.* a record\): [\d.]+ GiB", at["24GiB"]["change"])


def test_more_samples_take_more_work_and_a_faster_machine_less_time():
    few, many = (plan("demo", samples=n, gflops=100)["steps"]["prune: admm"] for n in (128, 256))
    assert many["work"]["Grams"] == 2 * few["work"]["Grams"]
    assert many["work"]["products"] == few["work"]["products"]
    assert few["seconds"] == pytest.approx(few["flop"] / 100e9)
    assert plan("demo")["steps"]["repair"]["seconds"] is None


def test_a_method_that_was_added_is_planned_too(monkeypatch):
    monkeypatch.setitem(module.METHODS, "mine", METHODS["sparsegpt"])
    assert plan("demo")["steps"]["prune: mine"]["bytes"] > 0


def test_sizes_are_read():
    assert [to_bytes(text) for text in ("24GiB", "512 mb", "1.5T")] == [24 * 1024**3, 512 * 1024**2, 1536 * 1024**3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": "lots"}, "'lots' is no size"),
        ({"memory": "0GiB"}, "is no size"),
        ({"samples": 0}, "samples: 0 must be at least 1"),
        ({"gflops": -1.0}, "gflops: -1.0 must be above 0"),
        ({"sparsity": "5:4"}, "5:4"),
    ],
)
def test_wrong_values_are_refused(settings, message):
    with pytest.raises(RessaError, match=message):
        plan("demo", **settings)


def test_a_file_that_is_no_config_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("no")
    (tmp_path / "b.json").write_text('{"model_type": "nonsense"}')
    vision = {"model_type": "siglip_vision_model", "num_hidden_layers": 2, "hidden_size": -30}
    (tmp_path / "c.json").write_text(json.dumps({"model_type": "llava", "vision_config": vision}))
    for name in "abc":
        with pytest.raises(RessaError, match=rf"{name}\.json: "):
            plan(tmp_path / f"{name}.json")


def run(*words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ressa", "inspect", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_the_command_line_shows_a_plan_and_prints_it_as_json(monkeypatch, capsys):
    assert run(LLAVA, "--plan", "--memory", "24GiB", "--gflops", "100000", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "7,063,427,072 parameters" in shown
    assert "repair does by itself what memory needs: as it is" in shown
    assert "repair does not fit: --teacher-cache DIR" in shown
    assert run("demo", "--plan", "--json", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["disk"].keys() == {"float32", "bfloat16", "int8"}


def test_options_of_the_plan_are_refused_without_it(monkeypatch, capsys):
    assert run("demo", "--batch-size", "4", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "ressa: --batch-size has no effect without --plan: add it\n"
