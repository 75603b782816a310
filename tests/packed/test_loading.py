"""Packed folders in transformers: with ressa they are the dense model, without it an error."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import pico
import ressa
from ressa.machine import found, native
from ressa.packed import loading
from ressa.packed import native as kernels
from ressa.packed.linear import PackedLinear


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def asked(folder, texts=("USER: <image> cat", "USER: <image> a photo of a red square")):
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    return processor(images=images[: len(texts)], text=list(texts), return_tensors="pt", padding=True)


@pytest.mark.parametrize("wanted", [{}, {"ignore_mismatched_sizes": False, "dtype": "auto"}])
def test_without_ressa_transformers_ends_in_an_error(packed, wanted):
    code = (
        "import sys; from transformers import AutoModelForImageTextToText as A\n"
        f"try: A.from_pretrained({str(packed)!r}, **{wanted!r})\n"
        "except Exception as error: print('error', type(error).__name__)\n"
        "print('ressa' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["error", "RuntimeError", "False"]


def test_one_import_lets_transformers_load_it(packed):
    code = (
        "import ressa.packed; from transformers import AutoModelForImageTextToText as A\n"
        f"model, told = A.from_pretrained({str(packed)!r}, output_loading_info=True)\n"
        "print(sum(type(module).__name__ == 'PackedLinear' for module in model.modules()), *told.values())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *left = done.stdout.split()
    assert int(count) == len(json.loads((packed / "ressa.json").read_text())["matrices"])
    assert set(left) <= {"set()", "[]", "{}"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_the_dense_folder_to_the_bit(packed, pruned, dtype):
    if dtype == torch.bfloat16 and torch.bfloat16 not in native("cpu", found()):
        pytest.skip("this processor computes bfloat16 otherwise")
    (sparse, _), (dense, _) = ressa.load(packed, dtype=dtype), ressa.load(pruned, dtype=dtype)
    inputs = asked(pruned).to(dtype)
    with torch.no_grad():
        assert sparse(**inputs).logits.equal(dense(**inputs).logits)


@pytest.mark.skipif(kernels.chosen() is None or sys.platform != "linux", reason="no kernels, or no /proc")
def test_what_was_read_is_given_back_linear_by_linear(pruned, tmp_path, monkeypatch):
    """The file stays mapped: what was read of it would stay in memory beside what was made of it."""
    ressa.export(pruned, tmp_path / "packed", values="bf16")
    events, prepare = [], kernels.prepare
    monkeypatch.setattr(kernels, "prepare", lambda one: events.append("prepared") or prepare(one))
    monkeypatch.setattr(kernels, "forget", lambda tensor: events.append("forgotten"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "packed")
    assert events == ["prepared", "forgotten", "forgotten"] * len(layers(model))  # values and bits


@pytest.mark.skipif(kernels.chosen() is None, reason="no kernels for this processor, or none were built")
@pytest.mark.parametrize("values", ["bf16", "int8", "int4"])
def test_what_has_kernels_is_prepared_for_them_and_answers_as_without(values, pruned, tmp_path, monkeypatch):
    ressa.export(pruned, tmp_path / "packed", values=values, rounding="nearest")
    found = []
    for name in (None, kernels.NONE):
        if name:
            monkeypatch.setenv(kernels.VARIABLE, name)
        model, _ = ressa.load(tmp_path / "packed")
        assert all((module._buffers["prepared"] is None) == bool(name) for module in layers(model).values())
        told = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
        found.append(model.generate(**asked(pruned), max_new_tokens=2, pad_token_id=0, **told).logits)
    assert all(torch.allclose(one, other, atol=0.1 * float(other.std())) for one, other in zip(*found, strict=True))


def test_what_has_no_kernels_is_said_once(packed, monkeypatch, recwarn):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    loading._say_once.cache_clear()
    with pytest.warns(ressa.errors.RessaWarning, match="unpacked at every call: values of fp32 have no kernels here"):
        ressa.load(packed)
    ressa.load(packed)
    assert not recwarn.list


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_generation_is_that_of_the_dense_folder(packed, pruned, how):
    found = []
    for folder in (packed, pruned):
        model, _ = ressa.load(folder)
        torch.manual_seed(0)
        found.append(model.generate(**asked(folder), max_new_tokens=5, pad_token_id=0, **how))
    assert found[0].equal(found[1])


def test_every_pruned_linear_is_packed_and_nothing_dense_is_kept(packed, pruned):
    told = json.loads((packed / "ressa.json").read_text())
    model, _ = ressa.load(packed)
    assert layers(model).keys() == told["matrices"].keys() == told["export"]["linears"].keys()
    dense, _ = ressa.load(pruned)
    packed_bytes = sum(tensor.nbytes for module in layers(model).values() for tensor in module.buffers())
    arithmetic = sum(entry["weights"] - entry["zeros"] for entry in told["matrices"].values()) * 4
    arithmetic += sum(entry["shape"][0] * -(-entry["shape"][1] // 8) for entry in told["matrices"].values())
    others = sum(p.nbytes for name, p in dense.named_parameters() if name.removesuffix(".weight") not in layers(model))
    held = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    buffers = sum(b.nbytes for b in dense.buffers())
    assert packed_bytes == arithmetic
    assert held <= 1.03 * (arithmetic + others) + buffers


def test_evaluate_and_inspect_take_it_and_say_what_they_say_of_the_dense_one(packed, pruned, tiny_data):
    sparse, dense = (ressa.evaluate(folder, data=tiny_data, limit=4) for folder in (packed, pruned))
    assert sparse["answers"] == dense["answers"]
    sparse, dense = (ressa.inspect(folder)["parts"] for folder in (packed, pruned))
    assert sparse == dense


def test_evaluate_in_another_dtype_than_is_stored_is_that_of_the_dense_folder(pruned, tiny_data, tmp_path):
    ressa.export(pruned, tmp_path / "packed", values="bf16")
    ressa.export(tmp_path / "packed", tmp_path / "dense", format="dense")
    sparse, dense = (
        ressa.evaluate(tmp_path / name, data=tiny_data, limit=4, dtype="float32") for name in ("packed", "dense")
    )
    assert sparse["answers"] == dense["answers"]


@pytest.mark.parametrize("family", ["blip2_t5", "blip2_opt", "instructblip_t5", "causal_lm"])
def test_other_families_answer_as_their_dense_folder(family, request, tmp_path):
    folder = request.getfixturevalue(f"{family}_folder")
    ressa.prune(folder, tmp_path / "pruned", method="magnitude", sparsity="50%")
    ressa.export(tmp_path / "pruned", tmp_path / "packed")
    (sparse, processor), (dense, _) = ressa.load(tmp_path / "packed"), ressa.load(tmp_path / "pruned")
    assert len(layers(sparse)) > 10
    inputs = {"text": ["a red square"], "return_tensors": "pt"}
    if family == "causal_lm":
        inputs = processor(**inputs)
    else:
        inputs = processor(images=[Image.new("RGB", (32, 32), "red")], **inputs)
    found = [model.generate(**inputs, max_new_tokens=6, do_sample=False) for model in (sparse, dense)]
    assert found[0].equal(found[1])


def test_prune_and_repair_refuse_it_and_say_what_to_do(packed, pruned, tiny_data, refused, tmp_path):
    line = refused("prune", packed, tmp_path / "out", "--method", "magnitude")
    assert f"ressa export {packed} OUT --format dense" in line
    for words in ((packed, tmp_path / "out", "--teacher", pruned), (pruned, tmp_path / "out", "--teacher", packed)):
        assert "--format dense" in refused("repair", *words, "--data", tiny_data)


def test_it_is_not_saved_by_transformers(packed, tmp_path):
    model, _ = ressa.load(packed)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "out")


def test_gpt2_with_its_conv1d_is_packed_too(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=24, n_head=2, n_layer=2, vocab_size=400, n_positions=64))
    for name, parameter in model.named_parameters():
        if name.endswith(("c_fc.weight", "c_attn.weight")):
            parameter.data.mul_(torch.rand(parameter.shape) < 0.5)
    model.save_pretrained(tmp_path / "dense")
    pico.tokenizer().save_pretrained(tmp_path / "dense")
    ressa.export(tmp_path / "dense", tmp_path / "packed")
    found, _ = ressa.load(tmp_path / "packed")
    assert len(layers(found)) == 4
    ids = torch.arange(10)[None]
    assert torch.allclose(found(ids).logits, model.eval()(ids).logits, atol=1e-5)
    ressa.export(tmp_path / "packed", tmp_path / "back", format="dense")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("dense", "back"))
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


# ---- files that lie --------------------------------------------------------------------------------------------------


def crafted(packed, out, change, config=()):
    """A copy of a packed folder with its tensors changed by `change`, which gets them and the stem of a linear."""
    shutil.copytree(packed, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors, next(key for key in tensors if key.endswith(".weight_values")).removesuffix(".weight_values"))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((out / "config.json").read_text())
    told["quantization_config"] |= dict(config)
    (out / "config.json").write_text(json.dumps(told))
    return out


CHANGES = {
    "values are stored": lambda t, s: t.update({f"{s}.weight_values": t[f"{s}.weight_values"][1:].clone()}),
    "behind|ask for": lambda t, s: t[f"{s}.weight_bitmask"].fill_(255),
    "does not say which shape": lambda t, s: t.pop(f"{s}.weight"),
    "by its config it is": lambda t, s: t[f"{s}.weight"].fill_(2**30),
    "without its values|missing": lambda t, s: t.pop(f"{s}.weight_values"),
    "is no linear|belongs to nothing": lambda t, s: t.update(
        {"lm.weight_values": torch.ones(3), "lm.weight": torch.ones(2)}
    ),
    "beside values of fp32": lambda t, s: t.update({f"{s}.weight_scale": torch.ones(3)}),
    "which no packed tensor is": lambda t, s: t.update({f"{s}.weight_values": torch.ones(3, dtype=torch.float64)}),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_crafted_folder_is_refused_in_one_line(words, packed, tmp_path):
    folder = crafted(packed, tmp_path / "crafted", CHANGES[words])
    with pytest.raises(ressa.RessaError, match=words) as refusal:
        ressa.load(folder)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_newer_version_is_refused(packed, tmp_path):
    folder = crafted(packed, tmp_path / "newer", lambda t, s: None, {"version": 2})
    for reader in (ressa.load, AutoModelForImageTextToText.from_pretrained):
        with pytest.raises(ressa.RessaError, match="ressa knows 1: update ressa"):
            reader(folder)
    with pytest.raises(ressa.RessaError, match="ressa knows 1: update ressa"):
        ressa.export(folder, tmp_path / "out", format="dense")


def test_headers_with_bytes_changed_at_random_are_refused_or_loaded(packed, tmp_path):
    folder = tmp_path / "fuzzed"
    shutil.copytree(packed, folder)
    file = folder / "model.safetensors"
    whole, draw = file.read_bytes(), random.Random(0)
    length = int.from_bytes(whole[:8], "little")
    places = [found.start() for found in re.finditer(rb"weight_(?:values|bitmask)", whole[:length])]
    for _ in range(60):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            changed[draw.choice(places) + draw.randint(-20, 60)] = draw.choice(b'0123456789[]{}:,"FUI')
        file.write_bytes(changed)
        try:
            ressa.export(folder, tmp_path / "out", format="dense")
            shutil.rmtree(tmp_path / "out")
        except ressa.RessaError:
            assert not (tmp_path / "out").exists()
