"""ressa export --format compressed-tensors: what the library and plain transformers make of it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import ressa
from ressa.model.folder import module_names

ASKED = {"format": "compressed-tensors", "group_size": 16}
FEW = {"samples": 4, "batch_size": 2}


def tensors(folder):
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def written_out(stored, stem):
    """The weight of a linear, by the words of the format."""
    scale = stored[f"{stem}.weight_scale"]
    if f"{stem}.weight" in stored:
        return stored[f"{stem}.weight"] * scale
    words, (rows, columns) = stored[f"{stem}.weight_packed"].tolist(), stored[f"{stem}.weight_shape"].tolist()
    values = [[(word >> 4 * k & 15) - 8 for word in row for k in range(8)] for row in words]
    weight = torch.tensor(values, dtype=scale.dtype)
    assert weight.shape == (rows, columns)
    return weight * scale.repeat_interleave(columns // scale.shape[1], dim=1)


def stems(stored):
    return [key.removesuffix(".weight_scale") for key in stored if key.endswith(".weight_scale")]


@pytest.fixture(scope="module", params=["int8", "int4"])
def exported(request, tmp_path_factory, pruned, tiny_data):
    out = tmp_path_factory.mktemp("compressed") / request.param
    ressa.export(pruned, out, values=request.param, data=tiny_data, **ASKED, **FEW)
    return out


def test_every_zero_of_the_pruned_model_is_a_zero_in_the_file(exported, pruned):
    stored, was = tensors(exported), tensors(pruned)
    matrices = json.loads((pruned / "ressa.json").read_text())["matrices"]
    assert len(stems(stored)) == sum(matrix["part"] == "language" for matrix in matrices.values())
    for stem in stems(stored):
        found, wanted = written_out(stored, stem), was[f"{stem}.weight"]
        assert not found[wanted == 0].any()
        assert 0 < (found - wanted).norm() < 0.2 * wanted.norm()
    assert "sparsity_config" not in (exported / "config.json").read_text()


def test_plain_transformers_answers_as_the_weights_written_out(exported, pruned, tiny_data):
    """Exactly where inputs are not rounded (W4A16), nearly where they are (W8A8)."""
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    from ressa.calibration.samples import samples

    model = AutoModelForImageTextToText.from_pretrained(exported).eval()
    written, processor = ressa.load(pruned)
    stored = tensors(exported)
    names = module_names(written, [f"{stem}.weight" for stem in stems(stored)])
    for key, name in names.items():
        written.get_submodule(name).weight.data.copy_(written_out(stored, key.removesuffix(".weight")))
    (batch,) = samples(tiny_data, processor, written.config, 4, batch_size=4, split="test")
    with torch.no_grad():
        found, wanted, bare = model(**batch).logits, written(**batch).logits, ressa.load(pruned)[0](**batch).logits
    off = float((found - wanted).norm() / wanted.norm())
    assert off < (1e-5 if "int4" in exported.name else 0.03)
    assert (found - bare).norm() < 0.2 * bare.norm()
    for name in names.values():
        assert not model.get_submodule(name).weight[written.get_submodule(name).weight == 0].any()


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_of_a_dense_model_the_language_model_is_written_whole_but_for_its_head(values, llava_folder, tmp_path):
    told = ressa.export(llava_folder, tmp_path / "out", values=values, rounding="nearest", **ASKED)["export"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "lm_head" in config["ignore"]
    assert not set(config["ignore"]) & told["linears"].keys()
    assert len(told["linears"]) == ressa.inspect(llava_folder)["parts"]["language"]["linears"]


def test_linears_that_groups_do_not_divide_stay_dense_and_are_named(pruned, tmp_path):
    asked = ASKED | {"group_size": 64}
    told = ressa.export(pruned, tmp_path / "out", values="int4", rounding="nearest", **asked)["export"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert all(name.endswith("down_proj") for name in told["linears"]), "the others read 32 inputs"
    assert any(name.endswith("up_proj") for name in told["left_dense"])
    assert set(told["left_dense"]) <= set(config["ignore"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("{pruned}", "{out}"), "stores int8 or int4: add --values int8"),
        (("{packed}", "{out}", "--values", "int8", "--rounding", "nearest"), "is packed; unpack it first"),
        (
            ("{pruned}", "{out}", "--values", "int4", "--rounding", "nearest", "--group-size", "1000"),
            "multiple of 1000 is to be rounded: take another --group-size",
        ),
    ],
)
def test_what_the_format_does_not_hold_is_one_line(words, line, pruned, packed, refused, tmp_path):
    names = {"packed": packed, "pruned": pruned, "out": tmp_path / "out"}
    words = [word.format(**names) for word in words]
    assert line in refused("export", *words, "--format", "compressed-tensors")


def test_ressa_refuses_such_a_folder_and_says_what_to_name(exported, refused):
    assert "name the model that it was made from" in refused("inspect", exported)
