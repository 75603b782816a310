"""Model folders as people have them: broken, quantised, half there. Each is refused by name, or read rightly."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import ressa
from ressa import plan
from ressa.data.seeing import sample_seen
from ressa.errors import RessaError
from ressa.model.folder import write_folder
from ressa.model.load import load


@pytest.fixture
def folder(causal_lm_folder, tmp_path):
    return shutil.copytree(causal_lm_folder, tmp_path / "model")


def edit(folder, name="config.json", **changes):
    file = folder / name
    told = json.loads(file.read_text()) if file.is_file() else {}
    for key, value in changes.items():
        node, *path = told, *key.split("__")
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value
    file.write_text(json.dumps(told))


def weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder):
    with pytest.raises(RessaError) as found:
        load(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


# ---- config.json -----------------------------------------------------------------------------------------------------

CONFIGS = {
    "hidden_size": ("32", "config cannot be read: .*'hidden_size' expected int, got str"),
    "num_attention_heads": (0, "num_attention_heads is 0"),
    "num_key_value_heads": (0, "config describes no model: num_key_value_heads is 0"),
    "vocab_size": (-5, "vocab_size is -5"),
    "hidden_act": ("homemade", "config describes no model: KeyError: 'homemade'"),
    "dtype": ("float99", "float99"),
    "use_cache": ("yes", "'use_cache' expected bool"),
    "rope_parameters": ("yarn", "'rope_parameters' with value 'yarn'"),
    "rope_parameters__rope_type": ("homemade", "config describes no model: KeyError: 'homemade'"),
    "pad_token_id": (9999, "Padding_idx must be within num_embeddings"),
    "intermediate_size": (
        128,
        r"down_proj\.weight is \(32, 64\) in the folder and \(32, 128\) by its config \(and 5 more",
    ),
}


@pytest.mark.parametrize("key", CONFIGS)
def test_a_value_that_no_model_has_is_named(key, folder):
    value, words = CONFIGS[key]
    edit(folder, **{key: value})
    with pytest.raises(RessaError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vision_config__num_attention_heads", 0, "vision_config.num_attention_heads is 0"),
        ("vision_config__patch_size", 0, "vision_config.patch_size is 0"),
        ("text_config", None, r"the folder holds [\d,]+ weights and its config describes 6,7"),
        ("text_config", "llama", "'text_config' with value 'llama'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_so_is_one_within(key, value, words, llava_folder, tmp_path):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    edit(folder, **{key: value})
    with pytest.raises(RessaError, match=words):
        load(folder)


@pytest.mark.parametrize("text", ["[1]", "3", '{"a": ', "{}", '{"model_type": 3}', '{"model_type": "llama99"}'])
def test_a_config_that_is_none_is_refused(text, folder):
    (folder / "config.json").write_text(text)
    assert "its config cannot be read" in refusal(folder)


def test_a_plan_refuses_the_same_configs(folder):
    edit(folder, num_key_value_heads=0)
    with pytest.raises(RessaError, match="num_key_value_heads is 0"):
        plan(folder)


def test_a_model_that_needs_code_of_its_own_is_told_so(folder):
    edit(folder, model_type="homemade", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"})
    assert "only the code in its folder knows this model (auto_map), and ressa runs no code of a folder" in refusal(
        folder
    )


# ---- generation_config.json ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"temperature": ',
        "[1]",
        '{"max_new_tokens": "many"}',
        '{"early_stopping": "maybe"}',
        '{"eos_token_id": "</s>"}',
    ],
)
def test_a_broken_generation_config_is_blamed_and_not_the_weights(text, folder):
    (folder / "generation_config.json").write_text(text)
    assert "generation_config.json cannot be used, mend or delete it: " in refusal(folder)


def test_one_that_transformers_would_not_write_again_is_no_hindrance(folder, tmp_path):
    """LLaVA's sets a temperature and does not sample."""
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7, "top_p": 0.9}')
    ressa.prune(folder, tmp_path / "out", method="magnitude")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.7


def test_one_that_asks_for_several_answers_gets_one(llava_folder, tmp_path, tiny_data):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    plain = ressa.evaluate(folder, data=tiny_data, limit=3, max_new_tokens=3)["answers"]
    edit(folder, "generation_config.json", num_beams=2, num_return_sequences=2)
    assert ressa.evaluate(folder, data=tiny_data, limit=3, max_new_tokens=3)["answers"] == plain


# ---- quantised weights -----------------------------------------------------------------------------------------------

QUANTISED = [
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors, format pack-quantized"),
    ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, load_in_4bit True"),
    ({"quant_method": "gptq", "bits": 4}, "gptq, bits 4"),
    ({"quant_method": "awq", "bits": 4}, "awq, bits 4"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt, quant_algo NVFP4"),
    ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
    ({"quant_method": "homemade"}, "homemade"),
    ({"bits": 4}, "by a method that it does not name, bits 4"),
]


@pytest.mark.parametrize(("told", "words"), QUANTISED)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantised_weights_are_named_as_what_they_are(told, words, key, folder):
    edit(folder, **{key: told})
    assert f"its weights are quantised ({words}); ressa works on plain weights" in refusal(folder)


def test_so_are_those_of_the_language_model_alone(llava_folder, tmp_path):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    edit(folder, text_config__quantization_config={"quant_method": "awq", "bits": 4})
    assert "quantised (awq, bits 4, in its text_config)" in refusal(folder)


@pytest.fixture
def blocks_of_8_bits(folder):
    """The model with its linears as 8-bit floats, each 16 x 16 of them with a scale; and what they stand for."""
    plain: dict = {}

    def quantise(tensors):
        stored = {}
        for key, weight in tensors.items():
            if "_proj" not in key:
                stored[key] = weight.bfloat16()
                continue
            rows, columns = weight.shape
            cut = weight.reshape(rows // 16, 16, columns // 16, 16)
            scale = cut.abs().amax((1, 3)) / 448
            small = (cut / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            stored[key], stored[f"{key}_scale_inv"] = small.reshape(rows, columns), scale
            plain[key] = (small.float() * scale[:, None, :, None]).reshape(rows, columns)
        return stored

    weights(folder, quantise)
    told = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    edit(folder, quantization_config=told, dtype="float32")
    return folder, plain


def test_8_bit_floats_in_blocks_become_bfloat16_and_that_is_said_and_written(blocks_of_8_bits, tmp_path):
    folder, plain = blocks_of_8_bits
    with pytest.warns(UserWarning, match="8-bit floats in blocks; they are made bfloat16, and written so"):
        model, _ = load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for key, weight in plain.items():
        torch.testing.assert_close(model.get_parameter(key).float(), weight, rtol=0.01, atol=1e-4)
    with pytest.warns(UserWarning, match="made bfloat16"):
        ressa.prune(folder, tmp_path / "out", method="magnitude", sparsity="2:4")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert load(tmp_path / "out")[0].dtype == torch.bfloat16


def test_8_bit_floats_are_made_what_is_asked_for(blocks_of_8_bits):
    with pytest.warns(UserWarning, match="made float32"):
        assert load(blocks_of_8_bits[0], dtype="float32")[0].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*made bfloat16")
def test_8_bit_floats_without_a_scale_are_refused(blocks_of_8_bits):
    folder, plain = blocks_of_8_bits
    gone = f"{next(iter(plain))}_scale_inv"
    weights(folder, lambda t: {key: tensor for key, tensor in t.items() if key != gone})
    assert f"is stored in 8 bits without its scale ({gone})" in refusal(folder)


@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale", "_zero_point"])
def test_scales_that_nothing_in_the_model_takes_are_refused_and_not_dropped(suffix, folder):
    weights(folder, lambda t: t | {f"model.layers.0.mlp.up_proj.weight{suffix}": torch.ones(2)})
    assert f"up_proj.weight{suffix}: the weights would be read without them" in refusal(folder)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_small_numbers_that_no_config_explains_are_not_taken_for_weights(dtype, name, folder):
    weights(folder, lambda t: {k: (v * 50).to(dtype) if "_proj" in k else v for k, v in t.items()})
    assert f"down_proj.weight is stored as {name}, and the config says of no quantisation" in refusal(folder)


# ---- weights ---------------------------------------------------------------------------------------------------------


def spoilt(folder, key, value):
    def spoil(tensors):
        next(tensor for name, tensor in tensors.items() if key in name).view(-1)[3] = value

    weights(folder, spoil)
    return folder


@pytest.mark.parametrize("key", ["down_proj", "embed_tokens", "layernorm"])
@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_a_weight_that_is_no_number_is_refused_by_its_name(key, value, kind, folder):
    assert f"{key}.weight holds {kind} (1 of its " in refusal(spoilt(folder, key, value))


def test_every_verb_refuses_weights_that_are_no_numbers(folder, causal_lm_folder, tiny_data, tmp_path):
    ressa.prune(folder, tmp_path / "pruned", method="magnitude")
    spoilt(folder, "down_proj", float("nan"))
    words = r"model\.layers\.0\.mlp\.down_proj\.weight holds NaN"
    for method in ("magnitude", "random", "wanda"):
        with pytest.raises(RessaError, match=words):
            ressa.prune(folder, tmp_path / "out", data=tiny_data, method=method)
    for asked in ({"model": folder}, {"model": causal_lm_folder, "against": folder}):
        with pytest.raises(RessaError, match=words):
            ressa.evaluate(data=tiny_data, limit=2, max_new_tokens=2, **asked)
    with pytest.raises(RessaError, match=words):
        ressa.repair(tmp_path / "pruned", tmp_path / "repaired", teacher=folder, data=tiny_data, steps=1)
    spoilt(tmp_path / "pruned", "down_proj", float("nan"))
    with pytest.raises(RessaError, match=words):
        ressa.repair(tmp_path / "pruned", tmp_path / "repaired", teacher=causal_lm_folder, data=tiny_data, steps=1)


def test_numbers_whose_sum_is_beyond_float32_are_numbers(folder):
    weights(folder, lambda t: {k: v.fill_(3e38) if "down_proj" in k else v for k, v in t.items()})
    load(folder)


def test_a_model_that_overflows_in_half_precision_is_told_so(llava_folder):
    model, processor = load(llava_folder, dtype="float16")
    for name, parameter in model.named_parameters():
        if "up_proj" in name or "gate_proj" in name:
            parameter.data.mul_(3e3)
    with pytest.raises(RessaError, match=r"the model's logits are NaN in float16: compute in another format"):
        sample_seen(model, processor)


@pytest.mark.parametrize("key", ["mtp.weight", "logit_scale"])
def test_tensors_that_belong_to_nothing_are_left_out_with_a_word(key, folder):
    weights(folder, lambda t: t | {key: torch.ones(3, 3)})
    with pytest.warns(UserWarning, match=rf"1 tensors .* belong to nothing in the model .* the first is {key}"):
        load(folder)


def sharded(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + (i > 5)}-of-00002.safetensors" for i, key in enumerate(sorted(tensors))}
    for file in set(names.values()):
        part = {key: tensors[key] for key, name in names.items() if name == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    edit(folder, "model.safetensors.index.json", metadata={}, weight_map=names)
    return tensors


def test_shards_are_read_and_a_missing_one_is_named(folder):
    tensors = sharded(folder)
    model = load(folder)[0]
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in tensors.items())
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(folder)


def test_shards_beside_a_whole_file_are_told_of(folder):
    whole = shutil.copy(folder / "model.safetensors", folder.parent / "whole")
    sharded(folder)
    shutil.copy(whole, folder / "model.safetensors")
    with pytest.warns(UserWarning, match="shards beside it, which are not read"):
        load(folder)


def test_a_pointer_of_git_lfs_is_no_file_of_weights(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "model.safetensors is a Git LFS pointer, no weights: fetch them with 'git lfs pull'" in refusal(folder)


def test_a_head_that_is_stored_a_second_time_is_read_as_it_is(folder, tmp_path):
    weights(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    ressa.prune(folder, tmp_path / "out", method="magnitude")
    assert torch.equal(load(tmp_path / "out")[0].lm_head.weight, head)


# ---- adapters and processors -----------------------------------------------------------------------------------------


def test_a_folder_with_an_adapter_alone_is_told_what_to_do(tmp_path):
    told = {"peft_type": "LORA", "base_model_name_or_path": "owls/owl-7b", "modules_to_save": ["lm_head"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    words = r"holds an adapter and no model; put it on its base model \(owls/owl-7b\) with peft .* merge_and_unload"
    for verb in (ressa.inspect, lambda model: ressa.prune(model, tmp_path / "out", method="magnitude")):
        with pytest.raises(RessaError, match=words):
            verb(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(RessaError, match="put it on its base model with peft"):
        load(tmp_path)


def test_a_processor_of_an_unknown_class_is_not_taken_for_a_tokenizer(llava_folder, tmp_path):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    edit(folder, "processor_config.json", processor_class="HomeProcessor")
    assert "processor_config.json is there, and yet no image processor came of it" in refusal(folder)


def test_a_second_tokenizer_that_is_gone_is_not_made_up_for_by_the_first(instructblip_t5_folder, tmp_path):
    folder = shutil.copytree(instructblip_t5_folder, tmp_path / "model")
    shutil.rmtree(folder / "qformer_tokenizer")
    assert "has no folder qformer_tokenizer" in refusal(folder)


@pytest.mark.parametrize("change", ["unlink", "{"])
def test_a_tokenizer_that_is_gone_or_broken_is_one_line(change, folder):
    (folder / "tokenizer.json").unlink()
    if change != "unlink":
        (folder / "tokenizer.json").write_text(change)
    assert "its tokenizer cannot be loaded: " in refusal(folder)


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_a_model_without_a_pad_token_or_that_pads_with_the_end_answers_the_same(pad, llava_folder, tmp_path, tiny_data):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    edit(folder, "tokenizer_config.json", pad_token=pad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = {"data": tiny_data, "limit": 3, "max_new_tokens": 3}
        assert ressa.evaluate(folder, **asked)["answers"] == ressa.evaluate(llava_folder, **asked)["answers"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
def test_a_chat_template_is_read_from_where_older_versions_kept_it(name, llava_folder, tmp_path):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder, name, chat_template=template)
    assert ressa.inspect(folder)["pictures"] == "tokens"


def test_a_run_that_made_nan_writes_nothing(folder, tmp_path):
    model, tokenizer = load(folder)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(RessaError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        write_folder(tmp_path / "out", model, tokenizer, {})
    assert not (tmp_path / "out").exists()
