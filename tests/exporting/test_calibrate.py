"""ressa export --values int8|int4 --data: whole models whose rounding is made up for."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import ressa
from ressa.exporting import calibrate
from ressa.model.load import load
from ressa.model.streamed import Streamed, load_streamed
from ressa.packed.linear import PackedLinear

FEW = {"samples": 4, "batch_size": 2}


def tensors(folder):
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def off(folder, original, data):
    """How far the logits of the answers are from the original's, over a batch of records."""
    from ressa.calibration.samples import samples

    one, processor = ressa.load(folder)
    other, _ = ressa.load(original)
    (batch,) = samples(data, processor, one.config, 4, batch_size=4, split="test")
    with torch.no_grad():
        wanted = other(**batch).logits
        return float((one(**batch).logits - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_zeros_stay_zeros_and_answers_come_nearer_than_rounded_to_nearest(values, pruned, tiny_data, tmp_path):
    asked = {"values": values, "group_size": 16}
    told = ressa.export(pruned, tmp_path / "made_up", data=tiny_data, **asked, **FEW)["export"]
    ressa.export(pruned, tmp_path / "nearest", rounding="nearest", **asked)
    assert told["arguments"]["rounding"] == "compensated"
    assert (
        told["bytes"]["written"]
        == json.loads((tmp_path / "nearest" / "ressa.json").read_text())["export"]["bytes"]["written"]
    )
    assert off(tmp_path / "made_up", pruned, tiny_data) < off(tmp_path / "nearest", pruned, tiny_data)
    ressa.export(tmp_path / "made_up", tmp_path / "dense", format="dense")
    was, found = tensors(pruned), tensors(tmp_path / "dense")
    assert all(not found[key][was[key] == 0].any() for key in was)


def test_the_same_bytes_come_of_it_every_time(pruned, tiny_data, tmp_path):
    for name in ("one", "other"):
        ressa.export(pruned, tmp_path / name, data=tiny_data, values="int4", **FEW)
    one, other = (next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in ("one", "other"))
    assert one == other


def test_a_dense_model_comes_nearer_too(llava_folder, tiny_data, tmp_path):
    ressa.export(llava_folder, tmp_path / "made_up", data=tiny_data, values="int4", **FEW)
    ressa.export(llava_folder, tmp_path / "nearest", values="int4", rounding="nearest")
    assert not any(key.endswith("weight_bitmask") for key in tensors(tmp_path / "made_up"))
    assert off(tmp_path / "made_up", llava_folder, tiny_data) < off(tmp_path / "nearest", llava_folder, tiny_data)


def test_linears_that_are_kept_turned_are_rounded_as_they_are_read(tmp_path, causal_lm_folder):
    """GPT-2's Conv1D keeps (I, O)."""
    _, processor = ressa.load(causal_lm_folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(processor), n_positions=64, n_embd=24, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = processor.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    processor.save_pretrained(tmp_path / "gpt2")
    lines = [json.dumps({"text": f"{word} and a circle and a square"}) for word in ("red", "blue", "green", "yellow")]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    ressa.prune(tmp_path / "gpt2", tmp_path / "pruned", method="magnitude", sparsity="50%")
    ressa.export(tmp_path / "pruned", tmp_path / "packed", data=tmp_path / "data.jsonl", values="int8", **FEW)
    ressa.export(tmp_path / "packed", tmp_path / "dense", format="dense")
    was, found = tensors(tmp_path / "pruned"), tensors(tmp_path / "dense")
    assert all(not found[key][was[key] == 0].any() for key in was)
    assert all(0 <= (found[key] - was[key]).norm() <= 0.02 * was[key].norm() for key in was)


def test_it_asks_for_data_and_says_how_to_go_without(pruned, refused, tmp_path):
    line = refused("export", pruned, tmp_path / "out", "--values", "int8")
    assert "name --data; or go without: --rounding nearest" in line


@pytest.mark.parametrize("more", [(), ("--values", "int8", "--rounding", "nearest")])
def test_data_that_nothing_looks_at_is_refused(more, pruned, tiny_data, refused, tmp_path):
    assert "data has no effect" in refused("export", pruned, tmp_path / "out", "--data", tiny_data, *more)


def test_records_that_enter_no_block_of_a_part_are_refused(pruned, tmp_path, refused):
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": "What is red?", "answer": "red"}))
    line = refused("export", pruned, tmp_path / "out", "--values", "int8", "--data", tmp_path / "data.jsonl")
    assert "no calibration record enters" in line


def in_memory(name):
    net, processor = load(name)
    return net, processor, Streamed(net)


@pytest.mark.parametrize("family", ["llava", "instructblip_t5"])
def test_blocks_are_read_one_at_a_time_and_the_bytes_are_those_of_a_model_in_memory(
    family, request, tiny_data, tmp_path, monkeypatch
):
    folder, read, there = request.getfixturevalue(f"{family}_folder"), Streamed._read, []

    def watched(self, name, dense):
        there.append(len(self._there))
        read(self, name, dense)

    monkeypatch.setattr(Streamed, "_read", watched)
    ressa.export(folder, tmp_path / "streamed", data=tiny_data, values="int8", **FEW)
    assert set(there) == {1}
    monkeypatch.setattr(calibrate, "load_streamed", in_memory)
    ressa.export(folder, tmp_path / "memory", data=tiny_data, values="int8", **FEW)
    one, other = tensors(tmp_path / "streamed"), tensors(tmp_path / "memory")
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


def test_a_block_that_is_read_again_has_its_rounded_weights(llava_folder, tiny_data, tmp_path, monkeypatch):
    """A batch that enters it once more must find what the others found."""
    loaded = []

    def watched(name):
        loaded.extend(load_streamed(name))
        return loaded

    monkeypatch.setattr(calibrate, "load_streamed", watched)
    ressa.export(llava_folder, tmp_path / "int4", data=tiny_data, values="int4", **FEW)
    net, _, streamed = loaded
    wanted, _ = load(tmp_path / "int4")
    rounded = {name: module.weight for name, module in wanted.named_modules() if isinstance(module, PackedLinear)}
    with streamed.whole():
        assert all(net.get_submodule(name).weight.equal(weight_OI) for name, weight_OI in rounded.items())
    assert rounded
