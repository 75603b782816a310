"""An output folder appears whole or not at all, and what is said of its zeros is counted from its files."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from transformers import AutoModelForImageTextToText

from ressa.errors import RessaError, RessaWarning
from ressa.files.folders import partial
from ressa.model.folder import check_output, patterns_of, read_manifest, verify, write_folder, zeros
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.patterns import NofM, Unstructured

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama", "causal_lm"]
MANIFEST = {"command": "test"}


@pytest.fixture
def llava(llava_folder):
    return load(llava_folder)


def _prune_to_2_of_4(model):
    """Zeros the first two of every four inputs of each linear in a block; returns the patterns."""
    linears = {name: linear for block in structure(model).blocks() for name, linear in block.linears.items()}
    with torch.no_grad():
        for linear in linears.values():
            linear.weight.view(-1, 4)[:, :2] = 0
    return dict.fromkeys(linears, NofM(2, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_on_disk_go_by_the_names_of_the_loaded_model(family, request, tmp_path):
    model, processor = load(request.getfixturevalue(f"{family}_folder"))
    patterns = _prune_to_2_of_4(model)
    write_folder(tmp_path / "out", model, processor, MANIFEST, patterns=patterns)
    counted = zeros(tmp_path / "out")
    assert {counted[name].sparsity for name in patterns} == {0.5}
    again, _ = load(tmp_path / "out")
    for name, count in counted.items():
        module = again.get_submodule(name) if name in dict(again.named_modules()) else None
        weight = again.get_parameter(name) if module is None else module.weight
        assert (count.zeros, count.weights) == (int((weight == 0).sum()), weight.numel())
    ours = {name for name, parameter in again.named_parameters() if parameter.ndim > 1}
    assert {name.removesuffix(".weight") for name in ours} == counted.keys()


def test_weights_come_back_bit_for_bit_with_plain_transformers(llava, tmp_path):
    model, processor = llava
    _prune_to_2_of_4(model)
    write_folder(tmp_path / "out", model, processor, MANIFEST)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_zeros_of_a_sharded_folder_are_counted_in_all_its_files(llava, tmp_path):
    model, _ = llava
    patterns = _prune_to_2_of_4(model)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    verify(tmp_path, patterns)


def test_a_broken_pattern_is_found_on_disk_and_named(llava, tmp_path):
    model, processor = llava
    patterns = _prune_to_2_of_4(model)
    name = "model.language_model.layers.1.mlp.down_proj"
    with torch.no_grad():
        model.get_submodule(name).weight[3, 0] = 1
    with pytest.raises(RessaError, match=f"{name} is not 2:4 on disk"):
        write_folder(tmp_path / "out", model, processor, MANIFEST, patterns=patterns)
    assert os.listdir(tmp_path) == []
    write_folder(tmp_path / "out", model, processor, MANIFEST)
    with pytest.raises(RessaError, match=f"{name} is not 2:4 on disk"):
        verify(tmp_path / "out", patterns)
    verify(tmp_path / "out", patterns | {name: Unstructured(0.49, "matrix")})


def test_a_matrix_that_is_not_on_disk_cannot_be_verified(llava_folder):
    with pytest.raises(RessaError, match=r"no weights of model\.absent on disk"):
        verify(llava_folder, {"model.absent": NofM(2, 4)})


def test_a_folder_without_weights_has_no_zeros(tmp_path):
    with pytest.raises(RessaError, match="no safetensors"):
        zeros(tmp_path)


def test_nothing_is_left_when_writing_fails(llava, tmp_path, monkeypatch):
    model, processor = llava

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(processor), "save_pretrained", fail)
    with pytest.raises(RessaError, match="cannot be written"):
        write_folder(tmp_path / "new" / "out", model, processor, MANIFEST)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "out: cannot be written (No space left on device)"),
        (OSError("connection reset"), "out: not written, for something else failed: connection reset"),
        (
            FileNotFoundError(2, "No such file", "/data/owl.jpg"),
            "something else failed: [Errno 2] No such file: '/data/",
        ),
        (ConnectionError(), "something else failed: ConnectionError"),
    ],
)
def test_what_failed_while_a_folder_was_written_is_told_as_it_is(error, told, tmp_path):
    with pytest.raises(RessaError) as refusal, partial(tmp_path / "out"):
        raise error
    assert told in str(refusal.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_will_not_take_a_file_is_told_of_as_such(tmp_path):
    def write() -> None:
        with partial(tmp_path / "out") as folder:
            (folder / "absent" / "file").write_text("")

    with pytest.raises(RessaError, match=r"out: cannot be written \(No such file or directory\)"):
        write()


def test_the_manifest_is_written_last_and_the_folder_appears_with_one_rename(llava, tmp_path, monkeypatch):
    model, processor = llava
    seen = {}
    rename = os.replace

    def spy(source, target):
        if os.path.isdir(source):
            seen["before"] = (os.listdir(tmp_path), sorted(os.listdir(source)))
        rename(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_folder(tmp_path / "out", model, processor, MANIFEST)
    (hidden,), files = seen["before"]
    assert hidden.startswith(".out.")
    assert {"ressa.json", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert os.listdir(tmp_path) == ["out"]
    assert read_manifest(tmp_path / "out") == MANIFEST


def test_the_folder_can_be_read_by_whoever_may_read_new_folders(llava, tmp_path):
    write_folder(tmp_path / "out", *llava, MANIFEST)
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_empty_folder_may_be_the_output_and_missing_parents_are_made(llava, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b"):
        check_output(out)
        write_folder(out, *llava, MANIFEST)
        assert read_manifest(out) == MANIFEST


def test_config_never_tells_of_sparsity(llava, tmp_path):
    model, processor = llava
    model.config.sparsity_config = {"format": "dense"}
    write_folder(tmp_path / "out", model, processor, MANIFEST)
    assert "sparsity" not in (tmp_path / "out" / "config.json").read_text()


def test_outputs_that_cannot_be_are_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for out, message in {
        "full": "is not empty",
        "file": "is a file",
        "file/below": "is a file",
        "full/kept.txt/a/b": "is a file",
    }.items():
        with pytest.raises(RessaError, match=message):
            check_output(tmp_path / out)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["file", "full", "full/kept.txt"]


def test_a_read_only_place_is_refused():
    with pytest.raises(RessaError, match="cannot be written"):
        check_output("/proc/ressa/out")


def test_a_folder_without_manifest_has_none_and_a_damaged_one_is_refused(tmp_path):
    assert read_manifest(tmp_path) is None
    for text in ("{", "[]"):
        (tmp_path / "ressa.json").write_text(text)
        with pytest.raises(RessaError, match=r"ressa\.json"):
            read_manifest(tmp_path)


def test_patterns_are_read_back_from_a_manifest():
    patterns = {"a": NofM(1, 4), "b": Unstructured(0.7, "matrix"), "c": Unstructured(0.123)}
    entries = {name: {"pattern": str(p), "group": getattr(p, "group", "row")} for name, p in patterns.items()}
    assert patterns_of(json.loads(json.dumps({"matrices": entries}))) == patterns


def test_a_card_that_cannot_be_made_costs_no_weights(llava, tmp_path):
    model, processor = llava
    manifest = {"command": "repair", "arguments": {"teacher": "demo"}, "before": {"arguments": 5}}
    with pytest.warns(RessaWarning, match="out: no model card is written"):
        write_folder(tmp_path / "out", model, processor, manifest)
    assert read_manifest(tmp_path / "out") == manifest
    assert not (tmp_path / "out" / "README.md").exists()
