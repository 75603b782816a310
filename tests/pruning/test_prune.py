"""prune: a dense folder in, a pruned folder out that plain transformers loads; or one line, and nothing written."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil

import pytest
import torch
from transformers import AutoModelForImageTextToText

import pico
from ressa import machine, prune
from ressa.errors import RessaError
from ressa.model.folder import patterns_of, read_manifest, verify, zeros
from ressa.model.load import load
from ressa.model.structure import structure

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama"]
SMALL = {"samples": 6, "batch_size": 4}


def _folder(request, family):
    return request.getfixturevalue(f"{family}_folder")


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vision_and_language_are_2_of_4_on_disk_and_nothing_else_is_touched(
    family, method, request, tiny_data, tmp_path
):
    folder, out = _folder(request, family), tmp_path / "out"
    prune(folder, out, data=tiny_data, method=method, **SMALL)
    pruned = AutoModelForImageTextToText.from_pretrained(out)
    dense, _ = load(folder)
    linears = {name for block in structure(dense).blocks(["vision", "language"]) for name in block.linears}
    counted = zeros(out)
    assert {counted[name].sparsity for name in linears} == {0.5}
    before = dense.state_dict()
    for name, tensor in pruned.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same == (name.removesuffix(".weight") not in linears), name


def test_a_text_only_model_is_pruned_too(causal_lm_folder, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in pico.SENTENCES))
    manifest = prune(causal_lm_folder, tmp_path / "out", data=data, sparsity="1:4")
    assert list(manifest["parts"]) == ["language"]
    assert manifest["parts"]["language"]["sparsity"] == 0.75


def test_the_manifest_tells_the_request_and_what_came_of_it(llava_folder, tiny_data, tmp_path):
    out = tmp_path / "out"
    manifest = prune(llava_folder, out, data=tiny_data, vision="40%", language="2:4", seed=3, **SMALL)
    assert manifest == read_manifest(out)
    assert (manifest["command"], manifest["seed"]) == ("prune", 3)
    assert manifest["arguments"]["vision"] == "40%"
    assert manifest["versions"].keys() == {"python", "ressa", "torch", "transformers"}
    assert manifest["seconds"] > 0
    assert manifest["peak_memory_bytes"] > 1e7
    counted = zeros(out)
    for name, entry in manifest["matrices"].items():
        assert (entry["zeros"], entry["weights"]) == (counted[name].zeros, counted[name].weights)
        assert entry["part"] == ("vision" if "vision" in name else "language")
        assert entry["pattern"] == ("40%" if entry["part"] == "vision" else "2:4")
    assert manifest["parts"]["vision"]["sparsity"] == pytest.approx(0.4, abs=1e-3)
    assert manifest["parts"]["language"]["sparsity"] == 0.5
    assert manifest["parts"]["connector"]["zeros"] == 0
    verify(out, patterns_of(manifest))


def test_unstructured_compares_whole_matrices_in_vision_and_rows_in_language(llava_folder, tmp_path):
    out = tmp_path / "out"
    manifest = prune(llava_folder, out, method="magnitude", sparsity=0.5)
    groups = {entry["part"]: entry["group"] for entry in manifest["matrices"].values()}
    assert groups == {"vision": "matrix", "language": "row"}
    model, _ = load(out)
    rows = {block.part: set() for block in structure(model).blocks()}
    for block in structure(model).blocks():
        for linear in block.linears.values():
            rows[block.part] |= set((linear.weight == 0).float().mean(dim=1).tolist())
    assert rows["language"] == {0.5}
    assert len(rows["vision"]) > 1
    rowwise = prune(llava_folder, tmp_path / "rows", method="magnitude", sparsity=0.5, group="row")
    assert {entry["group"] for entry in rowwise["matrices"].values()} == {"row"}


@pytest.mark.parametrize("part", ["vision", "connector", "language"])
def test_one_part_alone_can_be_pruned(part, instructblip_t5_folder, tiny_data, tmp_path):
    asked = dict.fromkeys(["vision", "connector", "language"], "0") | {part: "50%"}
    manifest = prune(instructblip_t5_folder, tmp_path / "out", data=tiny_data, **asked, **SMALL)
    assert {name: entry["zeros"] > 0 for name, entry in manifest["parts"].items()} == {
        name: name == part for name in asked
    }


def test_the_same_seed_writes_the_same_bytes(llava_folder, tiny_data, tmp_path):
    def bytes_of(name, seed):
        prune(llava_folder, tmp_path / name, data=tiny_data, seed=seed, method="sparsegpt", **SMALL)
        return hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()

    assert bytes_of("a", 1) == bytes_of("b", 1) != bytes_of("c", 2)


@pytest.mark.parametrize(
    "setting", [{"propagate": "dense"}, {"token_weights": {"image": 0, "text": 0}}, {"damp": 1.0}], ids=str
)
def test_each_setting_changes_the_weights(setting, llava_folder, tiny_data, tmp_path):
    for name, more in (("plain", {}), ("other", setting)):
        prune(llava_folder, tmp_path / name, data=tiny_data, method="sparsegpt", **SMALL, **more)
    plain, other = (load(tmp_path / name)[0].state_dict() for name in ("plain", "other"))
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


def test_blocks_may_be_pruned_on_a_device_of_their_own(llava_folder, tiny_data, tmp_path, monkeypatch):
    for name, device in (("here", "cpu"), ("there", "cpu:0")):
        monkeypatch.setattr(machine, "decide", lambda *asked, device=device: (device, torch.float32))
        prune(llava_folder, tmp_path / name, data=tiny_data, **SMALL)
    here, there = (load(tmp_path / name)[0].state_dict() for name in ("here", "there"))
    assert all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_progress_counts_blocks(method, llava_folder, tiny_data, tmp_path):
    told = []
    prune(
        llava_folder, tmp_path / "out", data=tiny_data, method=method, **SMALL, progress=lambda *args: told.append(args)
    )
    total = len(read_manifest(tmp_path / "out")["matrices"]) if method == "magnitude" else 4  # linears, or blocks
    assert [done for done, _, _ in told] == list(range(total + 1))
    assert {of for _, of, _ in told} == {total}


@pytest.fixture
def never_loads(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were loaded before the request was checked")

    # by way of importlib: `ressa.pruning.verb` may be the verb, which the package exports under its module's name
    monkeypatch.setattr(importlib.import_module("ressa.pruning.verb"), "load_streamed", refuse)


EARLY = {
    "unknown method": ({"method": "wnda"}, "unknown method 'wnda': did you mean 'wanda'"),
    "3:2": ({"sparsity": "3:2"}, "sparsity '3:2'"),
    "sparsity 1.2": ({"sparsity": 1.2}, "sparsity '1.2'"),
    "sparsity of a part": ({"language": "half"}, "sparsity 'half'"),
    "unknown group": ({"sparsity": "50%", "group": "rows"}, "unknown group 'rows': did you mean 'row'"),
    "unknown propagate": ({"propagate": "densely"}, "unknown propagate 'densely'"),
    "unknown token": ({"token_weights": {"img": 1}}, "unknown kind of token 'img'"),
    "damping nothing": ({"method": "wanda", "damp": 0.1}, "method 'wanda' has no setting 'damp'"),
    "no samples": ({"samples": 0}, "prune: samples: 0 must be at least 1"),
    "no data": ({"data": None}, "method 'admm' looks at the inputs of layers: name the data"),
    "absent data": ({"data": "absent/data"}, "absent/data: no such data folder"),
    "absent split": ({"split": "tests"}, r"no tests\.jsonl"),
    "absent model": ({"model": "./absent"}, "no such model folder"),
}


@pytest.mark.parametrize(("wrong", "message"), EARLY.values(), ids=EARLY.keys())
@pytest.mark.usefixtures("never_loads")
def test_a_wrong_request_is_refused_before_weights_are_loaded(wrong, message, llava_folder, tiny_data, tmp_path):
    request = {"model": llava_folder, "data": tiny_data} | wrong
    with pytest.raises(RessaError, match=message) as refusal:
        prune(request.pop("model"), tmp_path / "out", **request)
    assert "\n" not in str(refusal.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("never_loads")
def test_an_output_that_is_not_empty_is_refused_and_stays_as_it_is(llava_folder, tiny_data, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RessaError, match="is not empty"):
        prune(llava_folder, tmp_path, data=tiny_data)
    assert os.listdir(tmp_path) == ["precious.txt"]


@pytest.mark.usefixtures("never_loads")
def test_an_output_that_cannot_be_written_is_refused(llava_folder, tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RessaError, match="is a file"):
        prune(llava_folder, tmp_path / "file" / "out", data=tiny_data)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("part", ["vision", "connector"])
@pytest.mark.usefixtures("never_loads")
def test_vision_sparsity_asked_of_a_model_without_vision_is_refused(part, causal_lm_folder, tmp_path):
    with pytest.raises(RessaError, match=f"text-only model: it has no {part} to prune"):
        prune(causal_lm_folder, tmp_path / "out", method="magnitude", **{part: "50%"})
    assert os.listdir(tmp_path) == []


def test_weights_by_gradient_are_refused_where_every_token_is_an_answer(causal_lm_folder, tiny_data, tmp_path):
    with pytest.raises(RessaError, match="leave gradient out of token_weights"):
        prune(causal_lm_folder, tmp_path / "out", data=tiny_data, token_weights="gradient,text=1")


def test_2_of_4_on_a_width_that_is_not_divisible_by_4_is_refused_and_named(tiny_data, tmp_path):
    folder = pico.llava(tmp_path / "odd", intermediate=66)
    with pytest.raises(RessaError, match=r"2:4 does not fit model\.language_model\.layers\.0\.mlp\.down_proj.* 66 "):
        prune(folder, tmp_path / "out", data=tiny_data, **SMALL)
    assert os.listdir(tmp_path) == ["odd"]
    prune(folder, tmp_path / "out", data=tiny_data, language="50%", **SMALL)


def test_a_request_that_leaves_every_part_out_is_refused(llava_folder, tiny_data, tmp_path):
    with pytest.raises(RessaError, match="nothing to prune"):
        prune(llava_folder, tmp_path / "out", data=tiny_data, sparsity="0")
    assert os.listdir(tmp_path) == []


def test_data_that_never_shows_a_picture_cannot_calibrate_vision(llava_folder, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"question": "What?", "answer": text}) + "\n" for text in ("red", "blue")))
    with pytest.raises(RessaError, match=r"no calibration record enters model\.vision_tower"):
        prune(llava_folder, tmp_path / "out", data=data)
    assert os.listdir(tmp_path) == ["texts.jsonl"]
    manifest = prune(llava_folder, tmp_path / "out", data=data, vision="0")
    assert manifest["parts"]["language"]["sparsity"] == 0.5


def test_a_tied_head_stays_with_its_embedding(tiny_data, tmp_path):
    folder = pico.llava(tmp_path / "tied", tie=True)
    prune(folder, tmp_path / "out", data=tiny_data, **SMALL)
    dense, pruned = (load(tmp_path / name)[0] for name in ("tied", "out"))
    assert torch.equal(pruned.lm_head.weight, dense.lm_head.weight)
    assert pruned.lm_head.weight is pruned.get_input_embeddings().weight


def test_a_pruned_folder_can_be_pruned_again_and_only_gains_zeros(llava_folder, tiny_data, tmp_path):
    shutil.copytree(llava_folder, tmp_path / "dense")
    again = {"data": tiny_data, "method": "wanda", **SMALL}
    prune(tmp_path / "dense", tmp_path / "half", sparsity="2:4", **again)
    prune(tmp_path / "half", tmp_path / "more", sparsity="1:4", **again)
    half, more = (load(tmp_path / name)[0].state_dict() for name in ("half", "more"))
    assert all(((half[name] != 0) | (more[name] == 0)).all() for name in half)
