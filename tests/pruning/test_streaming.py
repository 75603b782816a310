"""Pruning block by block from files: the bytes of pruning in memory, whatever is asked for and whatever goes wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText

import pico
from ressa import prune
from ressa.calibration.data import CalibrationData
from ressa.calibration.sweep import SweepSettings, sweep
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.methods import get
from ressa.model.load import load
from ressa.model.shards import Shards
from ressa.model.streamed import Streamed, load_streamed
from ressa.model.structure import structure
from ressa.patterns import parse
from ressa.pruning.blocks import prune_block

SMALL = {"samples": 6, "batch_size": 4}


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if "safetensors" in file.name}


def in_memory(folder, out, data, parts, method, **how):
    """What `prune` does, with the whole model in memory and written by transformers."""
    net, processor = load(folder)
    blocks = structure(net).blocks(parts)
    patterns = {name: parse("2:4") for block in blocks for name in block.linears}
    records = read_records(data, "train") if data else None
    made = CalibrationData(net, processor, records, **SMALL, blocks=tuple(blocks))
    for turn in sweep(made, get(method).needs, SweepSettings(**how)):
        prune_block(get(method), turn.block, turn.inputs, patterns, turn.linears)
    net.save_pretrained(out)


@pytest.mark.parametrize(
    ("family", "method", "how"),
    [
        ("llava", "magnitude", {}),
        ("blip2_t5", "random", {}),
        ("instructblip_llama", "magnitude", {}),
        ("llava", "sparsegpt", {"propagate": "dense"}),
        ("blip2_opt", "wanda", {}),
        ("instructblip_t5", "admm", {"order": "layer"}),
        ("instructblip_llama", "sparsegpt", {"asymmetric": 0.5}),
        ("instructblip_t5", "wanda", {"propagate": "dense"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("parts", [("vision", "language"), ("language",)], ids="+".join)
def test_the_bytes_are_those_of_a_model_that_is_in_memory(family, method, how, parts, request, tiny_data, tmp_path):
    folder = request.getfixturevalue(f"{family}_folder")
    in_memory(folder, tmp_path / "memory", tiny_data, parts, method, **how)
    left = {} if "vision" in parts else {"vision": "0"}
    prune(folder, tmp_path / "out", data=tiny_data, method=method, **SMALL, **how, **left)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "memory")


def test_files_are_cut_as_transformers_cuts_them_and_the_cut_changes_no_weight(llava_folder, tiny_data, tmp_path):
    shards = tmp_path / "shards"
    load(llava_folder)[0].save_pretrained(shards, max_shard_size=100 * 1024)
    for file in llava_folder.glob("*.json"):
        if not (shards / file.name).exists():
            shutil.copy(file, shards)
    shutil.copy(llava_folder / "chat_template.jinja", shards)
    prune(llava_folder, tmp_path / "one", data=tiny_data, method="wanda", **SMALL)
    prune(shards, tmp_path / "many", data=tiny_data, method="wanda", shard_size="100K", **SMALL)
    assert bytes_of(shards).keys() == bytes_of(tmp_path / "many").keys()
    assert len(bytes_of(shards)) > 3
    index = "model.safetensors.index.json"
    assert (shards / index).read_bytes() == (tmp_path / "many" / index).read_bytes()
    one, many = (AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict() for name in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_tied_weight_is_written_once(tiny_data, tmp_path):
    folder = pico.llava(tmp_path / "tied", tie=True)
    prune(folder, tmp_path / "out", data=tiny_data, method="wanda", **SMALL)
    with (
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as written,
        safe_open(folder / "model.safetensors", "pt") as read,
    ):
        assert sorted(written.keys()) == sorted(read.keys())


def test_activations_on_the_disk_change_nothing_and_leave_nothing(llava_folder, tiny_data, tmp_path):
    settings = {"data": tiny_data, "method": "sparsegpt", **SMALL}
    for propagate in ("sequential", "dense"):
        for activations in ("ram", "disk"):
            out = tmp_path / f"{propagate}-{activations}"
            prune(llava_folder, out, activations=activations, propagate=propagate, **settings)
        assert bytes_of(tmp_path / f"{propagate}-ram") == bytes_of(tmp_path / f"{propagate}-disk")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_only_one_block_is_in_memory_at_a_time(instructblip_t5_folder, tiny_data, tmp_path, monkeypatch):
    present, there, most = Streamed._read, set(), []

    def read(self, name, dense):
        present(self, name, dense)
        if not self._standing_in:
            there.update(self._there)
            most.append(sum(not place.parameter.is_meta for places in self.places.values() for place in places))
            assert len(self._there) == 1, self._there

    monkeypatch.setattr(Streamed, "_read", read)
    prune(instructblip_t5_folder, tmp_path / "out", data=tiny_data, method="wanda", **SMALL)
    blocks = [block for block in structure(load(instructblip_t5_folder)[0]).blocks() if block.linears]
    assert there == {block.name for block in blocks}
    assert max(most) == max(len(block.linears) for block in blocks)


def test_the_work_of_a_block_does_not_grow_with_the_blocks_before_it(tiny_data, tmp_path):
    """Counted in calls of Python functions, which no other process disturbs."""
    folder = pico.llava(tmp_path / "model")
    config = AutoConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = 10
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    began, calls = [], 0

    def counts(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(counts)
    try:
        how = {"method": "sparsegpt", "progress": lambda *at: began.append((at[2], calls)), **SMALL}
        prune(folder, tmp_path / "out", data=tiny_data, **how)
    finally:
        sys.setprofile(None)
    took = [end - at for (name, at), (_, end) in pairwise(began) if "language_model" in name]
    assert len(took) == 10
    inner = took[1:-1]  # the first comes from the connector, the last goes on to nothing
    assert max(inner) < 1.01 * min(inner), took


def test_magnitude_has_one_tensor_in_memory_and_nothing_outside_of_it(llava_folder, tmp_path, monkeypatch):
    kept, most = Shards.keep, []

    def keep(self, block, changed):
        most.append(sum(parameter.numel() for parameter in self.net.parameters() if not parameter.is_meta))
        kept(self, block, changed)

    monkeypatch.setattr(Shards, "keep", keep)
    prune(llava_folder, tmp_path / "out", method="magnitude", shard_size="100K")
    held = sum(
        parameter.numel()
        for parameter in load_streamed(llava_folder, runs=False)[0].parameters()
        if not parameter.is_meta
    )
    largest = max(parameter.numel() for parameter in load(llava_folder)[0].parameters())
    assert held == 0
    assert max(most) <= largest + 1000, "a bias beside its matrix"


def test_a_tied_weight_stays_in_memory_where_the_rest_goes_tensor_by_tensor(tmp_path):
    folder = pico.llava(tmp_path / "tied", tie=True)
    net, _, streamed = load_streamed(folder, runs=False)
    there = {name for name, parameter in net.named_parameters() if not parameter.is_meta}
    assert there == {"model.language_model.embed_tokens.weight"}
    in_memory(folder, tmp_path / "memory", None, ("vision", "language"), "magnitude")
    prune(folder, tmp_path / "out", method="magnitude")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "memory")
    assert all(not piece.name.startswith("lm_head") for piece in streamed.pieces)


def test_a_model_whose_blocks_are_in_files_answers_as_one_in_memory(llava_folder):
    net, _, streamed = load_streamed(llava_folder)
    whole = load(llava_folder)[0]
    pixels, ids = torch.randn(1, 3, 32, 32), torch.tensor([[4, 4, 4, 4, 7, 8, 9]])
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids, pixel_values=pixels).logits for model in (net, whole))
    assert torch.equal(ours, theirs)
    assert all(place.parameter.is_meta for places in streamed.places.values() for place in places)
    with streamed.whole():
        assert all(torch.equal(net.state_dict()[name], one) for name, one in whole.state_dict().items())


def test_a_disk_that_is_full_from_the_beginning_is_one_line_and_leaves_nothing(
    llava_folder, tiny_data, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RessaError, match=r"out: cannot be written \(No space left on device\)"):
        prune(llava_folder, tmp_path / "out", data=tiny_data, method="wanda", **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_in_the_middle_is_one_line_and_the_same_command_goes_on(
    llava_folder, tiny_data, tmp_path, monkeypatch
):
    settings = {"data": tiny_data, "method": "sparsegpt", "shard_size": "100K", **SMALL}
    write, written = Shards._write, []

    def fills_up(self, tensors):
        written.append(tensors)
        if len(written) == 3:
            write(self, dict(list(tensors.items())[:2]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "_write", fills_up)
        with pytest.raises(RessaError, match=r"cannot be kept there \(.*No space left on device\)"):
            prune(llava_folder, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    assert prune(llava_folder, tmp_path / "out", **settings)["resumed_blocks"] == 2
    prune(llava_folder, tmp_path / "whole", **settings)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    names = [{path.name for path in (tmp_path / out).iterdir()} for out in ("out", "whole")]
    assert names[0] == names[1]


def test_magnitude_that_a_full_disk_stopped_goes_on_at_the_tensor(llava_folder, tmp_path, monkeypatch):
    write, written = Shards._write, []

    def fills_up(self, tensors):
        written.append(tensors)
        if len(written) == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "_write", fills_up)
        with pytest.raises(RessaError, match=r"cannot be kept there \(.*No space left on device\)"):
            prune(llava_folder, tmp_path / "out", method="magnitude")
    assert prune(llava_folder, tmp_path / "out", method="magnitude")["resumed_blocks"] == 19
    prune(llava_folder, tmp_path / "whole", method="magnitude")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes where it may not")
def test_an_output_where_nothing_may_be_written_is_one_line(llava_folder, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(RessaError, match="cannot be written") as told:
        prune(llava_folder, tmp_path / "closed" / "out", method="magnitude")
    assert "\n" not in str(told.value)


def test_an_output_on_a_read_only_disk_is_one_line_and_the_same_command_goes_on(llava_folder, tmp_path, monkeypatch):
    """Root writes into any folder, so the system's answer is played."""
    write = open

    def read_only(file, mode="r", *rest, **more):
        if "safetensors" in str(file) and "+" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(file, mode, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", read_only)
        with pytest.raises(RessaError, match=r"cannot be kept there \(.*Read-only file system\)") as told:
            prune(llava_folder, tmp_path / "out", method="magnitude")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()
    prune(llava_folder, tmp_path / "out", method="magnitude")


def test_what_fails_after_the_last_block_loses_nothing(llava_folder, tiny_data, tmp_path, monkeypatch):
    settings = {"data": tiny_data, "method": "wanda", **SMALL}
    with monkeypatch.context() as patch:
        patch.setattr("ressa.model.folder.verify", lambda *_: (_ for _ in ()).throw(RessaError("not now")))
        with pytest.raises(RessaError, match="not now"):
            prune(llava_folder, tmp_path / "out", **settings)
    assert prune(llava_folder, tmp_path / "out", **settings)["resumed_blocks"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("how", ["gone", "short", "no header"])
def test_a_shard_that_is_missing_or_damaged_is_one_line(how, llava_folder, tiny_data, tmp_path):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    load(llava_folder)[0].save_pretrained(folder, max_shard_size=100 * 1024)
    shard = sorted(folder.glob("model-*.safetensors"))[2]
    if how == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100] if how == "short" else b"\0" * 100)
    with pytest.raises(RessaError, match=rf"{shard.name} is (not there|damaged)") as told:
        prune(folder, tmp_path / "out", data=tiny_data, method="wanda", **SMALL)
    assert "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_weight_that_is_no_number_is_refused_before_any_work(llava_folder, tiny_data, tmp_path):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    net = load(llava_folder)[0]
    with torch.no_grad():
        net.model.language_model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    net.save_pretrained(folder)
    with pytest.raises(RessaError, match=r"up_proj\.weight holds NaN"):
        prune(folder, tmp_path / "out", data=tiny_data, method="wanda", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_index_says_what_is_in_which_file(llava_folder, tmp_path):
    prune(llava_folder, tmp_path / "out", method="magnitude", shard_size="50K")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        with safe_open(tmp_path / "out" / file, "pt") as tensors:
            assert set(tensors.keys()) == {key for key, where in index["weight_map"].items() if where == file}
