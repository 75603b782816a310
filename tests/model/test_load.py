"""A folder becomes a model as transformers would load it, or one line that says why not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

import ressa.demo
from ressa.errors import RessaError
from ressa.model.load import load


@pytest.fixture
def copied(llava_folder, tmp_path):
    return shutil.copytree(llava_folder, tmp_path / "llava")


def test_a_vision_language_model_comes_with_its_processor(llava_folder):
    model, processor = load(llava_folder)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(processor, LlavaProcessor)
    assert not model.training


def test_a_text_only_model_comes_with_its_tokenizer(causal_lm_folder):
    model, tokenizer = load(str(causal_lm_folder))
    assert isinstance(model, LlamaForCausalLM)
    assert tokenizer.decode(tokenizer("What colour is it?")["input_ids"]) == "What colour is it?"


def test_weights_keep_the_dtype_on_disk_unless_told_otherwise(llava_folder, tmp_path):
    load(llava_folder, dtype="bfloat16")[0].save_pretrained(tmp_path)
    load(llava_folder)[1].save_pretrained(tmp_path)
    assert load(llava_folder)[0].dtype == torch.float32
    assert load(tmp_path)[0].dtype == torch.bfloat16
    assert load(tmp_path, dtype=torch.float32)[0].dtype == torch.float32


def test_demo_is_the_embedded_model(llava_folder, monkeypatch):
    monkeypatch.setattr(ressa.demo, "EMBEDDED", llava_folder, raising=False)
    assert isinstance(load("demo")[0], LlavaForConditionalGeneration)


@pytest.mark.parametrize("name", ["absent", "a/b/c", "/absent", "./absent", "~/absent/model"])
def test_a_path_that_is_not_there_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RessaError, match=r"no (such model folder|folder or hub model)") as refusal:
        load(tmp_path / name if name == "absent" else name)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(RessaError, match=r"no config\.json"):
        load(tmp_path)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(RessaError, match="no such model folder"):
        load(tmp_path / "model")


def test_weights_that_are_missing_are_refused_and_not_made_up(copied):
    tensors = load_file(copied / "model.safetensors")
    gone = next(key for key in tensors if key.endswith("layers.1.mlp.up_proj.weight"))
    del tensors[gone]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RessaError, match=r"1 weights are missing .* model\.language_model\.layers\.1\.mlp\.up_proj"):
        load(copied)


def test_weights_in_pickles_are_refused(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(RessaError, match="its weights are a pickle"):
        load(copied)


def test_damaged_weights_are_refused(copied):
    (copied / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(RessaError, match="cannot be loaded from safetensors"):
        load(copied)


def test_code_in_the_folder_is_not_run(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.Homemade"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "homemade.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(RessaError):
        load(copied)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_neither_sees_nor_writes_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(RessaError, match="a vit model is neither image-text-to-text nor causal"):
        load(tmp_path)


def test_an_unknown_dtype_is_refused(llava_folder):
    with pytest.raises(RessaError, match="did you mean 'bfloat16'"):
        load(llava_folder, dtype="bfloat")
