"""ressa export: packed and dense folders, what is packed, what is said."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import pico
import ressa


def tensors(folder):
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def same(one, other):
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].equal(other[key]) for key in one
    )


def test_dense_again_every_tensor_and_every_other_file_is_as_it_was(pruned, packed, tmp_path):
    told = ressa.export(packed, tmp_path / "dense", format="dense")["export"]
    assert same(pruned, tmp_path / "dense")
    for file in pruned.iterdir():
        if file.name not in ("ressa.json", "model.safetensors", "README.md"):  # the card has the name of the folder
            assert (tmp_path / "dense" / file.name).read_bytes() == file.read_bytes(), file.name
    assert told["format"] == "dense"
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "dense")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_to_the_bit_too(dtype, pruned, tmp_path):
    model, processor = ressa.load(pruned, dtype=dtype)
    model.save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    ressa.export(tmp_path / "half", tmp_path / "packed")  # no ressa.json says what was pruned
    ressa.export(tmp_path / "packed", tmp_path / "dense", format="dense")
    assert same(tmp_path / "half", tmp_path / "dense")
    told = json.loads((tmp_path / "packed" / "ressa.json").read_text())
    assert told["command"] == "export"
    assert told["export"]["linears"].keys() == json.loads((pruned / "ressa.json").read_text())["matrices"].keys()


def test_shards_stay_shards(pruned, tmp_path):
    model, processor = ressa.load(pruned)
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    processor.save_pretrained(tmp_path / "shards")
    ressa.export(tmp_path / "shards", tmp_path / "packed")
    files = {file.name for file in (tmp_path / "shards").glob("*.safetensors")}
    assert len(files) > 2
    assert {file.name for file in (tmp_path / "packed").glob("*.safetensors")} == files
    found, _ = ressa.load(tmp_path / "packed")
    ids = torch.arange(5, 15)[None]
    assert found(input_ids=ids).logits.equal(model(input_ids=ids).logits)
    ressa.export(tmp_path / "packed", tmp_path / "dense", format="dense")
    assert same(tmp_path / "shards", tmp_path / "dense")


@pytest.mark.parametrize("values", ["bf16", "fp16", "int8", "int4"])
def test_other_values_keep_every_zero_and_come_near(values, pruned, tmp_path):
    told = ressa.export(pruned, tmp_path / "packed", values=values, group_size=16, rounding="nearest")["export"]
    ressa.export(tmp_path / "packed", tmp_path / "dense", format="dense")
    was, found = tensors(pruned), tensors(tmp_path / "dense")
    stored = [key.removesuffix("_values") for key in tensors(tmp_path / "packed") if key.endswith("weight_values")]
    assert len(stored) == len(told["linears"]) > 10
    for key in stored:
        assert not found[key][was[key] == 0].any()
        error = (found[key].float() - was[key]).norm() / was[key].norm()
        assert 0 < error < {"bf16": 0.003, "fp16": 0.0005, "int8": 0.01, "int4": 0.15}[values]
    assert told["bytes"]["written"] < told["bytes"]["read"]


def test_a_dense_model_is_packed_whole_in_integers_without_a_bitmask(llava_folder, tmp_path):
    told = ressa.export(llava_folder, tmp_path / "packed", values="int8", rounding="nearest")["export"]
    assert not any(key.endswith("weight_bitmask") for key in tensors(tmp_path / "packed"))
    assert len(told["linears"]) == sum(part["linears"] for part in ressa.inspect(llava_folder)["parts"].values())
    model, _ = ressa.load(tmp_path / "packed")
    dense, _ = ressa.load(llava_folder)
    ids = torch.arange(5, 15)[None]
    one, other = model(input_ids=ids).logits, dense(input_ids=ids).logits
    assert 0 < (one - other).norm() / other.norm() < 0.05


@pytest.mark.parametrize("sparsity", ["2:4", "4:8", "50%"])
def test_demo_packed_answers_to_the_bit_as_it_does_dense(sparsity, tmp_path):
    ressa.prune("demo", tmp_path / "pruned", method="magnitude", sparsity=sparsity)
    ressa.export(tmp_path / "pruned", tmp_path / "packed")
    ids = torch.arange(5, 25)[None]
    one, other = (ressa.load(tmp_path / name, dtype="float32")[0] for name in ("packed", "pruned"))
    with torch.no_grad():
        assert one(input_ids=ids).logits.equal(other(input_ids=ids).logits)


def test_the_bytes_of_demo_are_those_the_format_says(tmp_path):
    ressa.prune("demo", tmp_path / "pruned", method="magnitude", sparsity="2:4")
    for values, share in (("same", 9 / 16), ("int8", 5 / 16), ("int4", 3 / 16)):
        told = ressa.export(tmp_path / "pruned", tmp_path / values, values=values, rounding="nearest")["export"]
        weights = sum(linear["shape"][0] * linear["shape"][1] for linear in told["linears"].values())
        dense = told["bytes"]["read"] - 2 * weights
        scales = {"same": 0, "int8": 4 / 288, "int4": 2 / 64}[values] * weights  # rows of at least 144, groups
        expected = dense + share * 2 * weights
        assert expected <= told["bytes"]["written"] <= 1.03 * (expected + scales)


def test_the_card_says_that_loading_needs_ressa(packed, pruned):
    assert "import ressa.packed" in (packed / "README.md").read_text()
    assert "loads without ressa" in (pruned / "README.md").read_text()


def test_the_cards_say_of_rounded_weights_that_they_were_rounded(pruned, tmp_path):
    ressa.export(pruned, tmp_path / "packed", values="int4", rounding="nearest")
    ressa.export(tmp_path / "packed", tmp_path / "dense", format="dense")
    for name, first in (("packed", "import ressa.packed"), ("dense", "loads without ressa")):
        card = (tmp_path / name / "README.md").read_text()
        assert first in card
        assert "linears were converted to int4" in card


def test_the_command_line_says_what_it_wrote(pruned, ressa, tmp_path):
    code, out, _ = ressa("export", pruned, tmp_path / "packed", "--values", "int8", "--rounding", "nearest")
    assert code == 0
    assert "linears packed" in out
    assert "% of" in out


def test_a_disk_that_lies_is_found_out(pruned, tmp_path, monkeypatch):
    from ressa.exporting import files

    def changed(file, out, pairs):
        first = True
        kept = []
        for key, tensor in pairs:
            if first and key.endswith("weight_values"):
                tensor, first = tensor + 1, False
            kept.append((key, tensor))
        write(file, out, kept)

    write = files.write_weights
    monkeypatch.setattr(files, "write_weights", changed)
    with pytest.raises(ressa.RessaError, match="on disk is not what was read"):
        ressa.export(pruned, tmp_path / "packed")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("{packed}", "{out}"), "is packed already; --format dense unpacks it"),
        (("{pruned}", "{out}", "--format", "dense"), "is dense already; --format packed packs it"),
        (("{packed}", "{out}", "--format", "dense", "--values", "int8"), "values int8 has no effect with format dense"),
        (("{dense}", "{out}"), "no pruned linear to pack"),
        (("{pruned}", "{out}", "--values", "int3"), "unknown values 'int3': did you mean"),
        (("someone/model", "{out}"), "is no folder on this machine"),
        (("{pruned}", "{pruned}/out"), "lies in"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, line, packed, pruned, llava_folder, refused, tmp_path):
    names = {"packed": packed, "pruned": pruned, "dense": llava_folder, "out": tmp_path / "out"}
    assert line in refused("export", *(word.format(**names) for word in words))


def test_a_missing_shard_is_named(pruned, tmp_path):
    model, _ = ressa.load(pruned)
    shutil.copytree(pruned, tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    with pytest.raises(ressa.RessaError, match="is not there"):
        ressa.export(tmp_path / "shards", tmp_path / "packed")


def test_experts_that_share_a_parameter_stay_dense_and_are_named(tmp_path):
    folder = pico.llava(tmp_path / "dense")
    told = json.loads((folder / "config.json").read_text())
    assert told  # the names of what is left dense come from ressa.json
    ressa.prune(folder, tmp_path / "pruned", method="magnitude", sparsity="2:4")
    manifest = json.loads((tmp_path / "pruned" / "ressa.json").read_text())
    manifest["matrices"]["model.experts.gate_up_proj.0"] = next(iter(manifest["matrices"].values()))
    (tmp_path / "pruned" / "ressa.json").write_text(json.dumps(manifest))
    told = ressa.export(tmp_path / "pruned", tmp_path / "packed")["export"]
    assert told["left_dense"] == ["model.experts.gate_up_proj.0"]
