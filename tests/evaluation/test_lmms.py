"""The bridge to lmms-eval: the command that is built, and what is said where it cannot be. It is not installed here."""

from __future__ import annotations

import json
import sys

import pytest

from ressa import cli
from ressa.errors import RessaError
from ressa.evaluation import lmms


def config(folder, **told):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def test_the_same_folder_is_given_to_lmms_eval(llava_folder, tmp_path):
    words = lmms.command(llava_folder, "mme, vqav2_val", out=tmp_path / "out", limit=8, device="cuda")
    assert words[:3] == [sys.executable, "-m", "lmms_eval"]
    told = dict(zip(words[3::2], words[4::2], strict=False))
    assert told["--model"] == "llava_hf"
    assert told["--model_args"] == f"pretrained={llava_folder}"
    assert told["--tasks"] == "mme,vqav2_val"
    assert told["--batch_size"] == "1"  # its llava_hf takes no other
    assert (told["--limit"], told["--device"]) == ("8", "cuda")
    assert words[-3:] == ["--output_path", str(tmp_path / "out" / "lmms"), "--log_samples"]


@pytest.mark.parametrize(
    ("kind", "model"), [("qwen2_5_vl", "qwen2_5_vl"), ("mllama", "llama_vision"), ("idefics3", "huggingface")]
)
def test_each_architecture_has_its_class_and_the_others_the_general_one(kind, model, tmp_path):
    words = lmms.command(config(tmp_path / "m", model_type=kind), "mme", batch_size=4)
    assert words[words.index("--model") + 1] == model
    assert words[words.index("--batch_size") + 1] == "4"
    assert ("device_map=cpu" in words[words.index("--model_args") + 1]) == (model == "huggingface")


def test_instructblip_goes_and_blip2_is_refused(instructblip_t5_folder, blip2_t5_folder):
    assert "instructblip" in lmms.command(instructblip_t5_folder, "mme")
    with pytest.raises(RessaError, match=r"lmms-eval has no class for blip-2; ressa's own tasks do"):
        lmms.command(blip2_t5_folder, "mme")


def test_no_task_and_a_comma_in_the_path_are_refused(llava_folder, tmp_path):
    with pytest.raises(RessaError, match="lmms: names no task"):
        lmms.command(llava_folder, " , ")
    with pytest.raises(RessaError, match="path with a comma; rename the folder"):
        lmms.command(config(tmp_path / "a,b", model_type="llava"), "mme")


def test_what_is_not_installed_is_told_with_the_way_to_install_it(llava_folder, monkeypatch, capsys):
    monkeypatch.setattr(lmms, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["ressa", "evaluate", str(llava_folder), "--lmms", "mme"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "ressa: lmms-eval is not installed: pip install 'ressa[lmms]'\n"


def test_a_failure_of_lmms_eval_is_told_with_its_command(llava_folder, monkeypatch):
    monkeypatch.setattr(lmms, "find_spec", lambda name: object())
    monkeypatch.setattr(lmms, "command", lambda *_, **__: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RessaError, match=r"lmms-eval ended with code 3.*SystemExit"):
        lmms.evaluate(llava_folder, "mme")
    monkeypatch.setattr(lmms, "command", lambda *_, **__: [sys.executable, "-c", ""])
    lmms.evaluate(llava_folder, "mme")


def test_data_is_needed_unless_lmms_eval_brings_its_own(llava_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ressa", "evaluate", str(llava_folder)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "evaluate: needs --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--task", "pope"], "--task"),
        (["--task", "folder"], "--task"),  # the default, but asked for
        (["--against", "demo"], "--against"),
        (["--versus", "scores"], "--versus"),
        (["--grey"], "--grey"),
        (["--data", "data"], "--data"),
        (["--split", "val"], "--split"),
        (["--perplexity"], "--perplexity"),
        (["--num-beams", "2"], "--num-beams"),
        (["--json"], "--json"),
    ],
)
def test_an_option_that_lmms_eval_would_not_get_is_refused(words, named, llava_folder, monkeypatch, capsys):
    monkeypatch.setattr(lmms, "find_spec", lambda name: pytest.fail("asked"))
    monkeypatch.setattr(sys, "argv", ["ressa", "evaluate", str(llava_folder), "--lmms", "mme", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"ressa: {named} has no effect with --lmms: leave one of them out\n"


def test_a_batch_size_that_lmms_eval_would_not_use_is_refused(llava_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ressa", "evaluate", str(llava_folder), "--lmms", "mme", "--batch-size", "4"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "llava_hf takes batches of 1 only: leave --batch-size out" in capsys.readouterr().err
    assert "32" in lmms.command(config(tmp_path / "m", model_type="idefics2"), "mme")
