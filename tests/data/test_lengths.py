"""Records that are longer than a model has places for, or hold words it does not embed, are named before any work."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import pico
import ressa
from ressa.calibration.rehearsal import check_room
from ressa.data.prompts import encode
from ressa.data.records import Record
from ressa.data.seeing import Noise
from ressa.errors import RessaError
from ressa.model.load import load
from ressa.model.positions import longest

SIZES = {"vocab_size": len(pico.tokenizer()), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def shortened(folder, out, key, config, places, unused=0):
    """A copy of a model with fewer places in its table of positions `key`."""
    copy = shutil.copytree(folder, out)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith(key))
    tensors[name] = tensors[name][: places + unused].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((copy / "config.json").read_text())
    told[config]["max_position_embeddings"] = places
    (copy / "config.json").write_text(json.dumps(told))
    return copy


@pytest.fixture
def short_opt(blip2_opt_folder, tmp_path):
    return shortened(blip2_opt_folder, tmp_path / "opt", "embed_positions.weight", "text_config", 24, unused=2)


def test_learned_places_are_counted_without_those_that_stay_empty(
    blip2_opt_folder, instructblip_t5_folder, llava_folder
):
    assert longest(load(blip2_opt_folder)[0]) == {"decoder": 512}  # its table has 514 rows
    assert longest(load(instructblip_t5_folder)[0]) == {"qformer": 512}  # T5's positions are relative
    assert longest(load(llava_folder)[0]) == {}  # its tower's table holds patches, and Llama's positions turn


def test_every_verb_names_the_record_that_is_too_long(short_opt, blip2_opt_folder, tiny_data, tmp_path):
    words = r"record 't\w+-\d+' has \d+ tokens .*decoder has places for 24: shorten or remove it"
    with pytest.raises(RessaError, match=words):
        ressa.prune(short_opt, tmp_path / "out", data=tiny_data, samples=12)
    with pytest.raises(RessaError, match=words):
        ressa.evaluate(short_opt, data=tiny_data, max_new_tokens=4)
    with pytest.raises(RessaError, match=words):
        ressa.evaluate(blip2_opt_folder, data=tiny_data, against=short_opt, max_new_tokens=1)
    ressa.prune(short_opt, tmp_path / "pruned", method="magnitude")
    with pytest.raises(RessaError, match=words):
        ressa.repair(tmp_path / "pruned", tmp_path / "repaired", teacher=short_opt, data=tiny_data, steps=1)


def test_what_fits_to_the_last_place_goes_through_and_one_more_does_not(blip2_opt_folder, tmp_path):
    record = Record("r", "What colour is it?", ("red",), image=Noise(size=(40, 40)))
    model, processor = load(blip2_opt_folder)
    prompt = encode(processor, [record], model.config, answers=False)["input_ids"].shape[1]
    check_room(model, processor, [record], 513 - prompt)  # the last of the new tokens is not read again
    with pytest.raises(RessaError, match="--max-new-tokens"):
        check_room(model, processor, [record], 514 - prompt)
    folder = shortened(blip2_opt_folder, tmp_path / "opt", "embed_positions.weight", "text_config", prompt, unused=2)
    tight = load(folder)
    check_room(*tight, [record], 1)
    assert ressa.evaluate(tight, data=_one(tmp_path), max_new_tokens=1)["n"] == 1
    with pytest.raises(RessaError, match="places for"):
        check_room(*tight, [record], 2)


def _one(folder):
    Noise(size=(40, 40)).open().save(folder / "a.png")
    told = {"image": "a.png", "question": "What colour is it?", "answer": "red"}
    (folder / "test.jsonl").write_text(json.dumps(told) + "\n")
    return folder


def test_a_question_that_is_too_long_for_the_qformer_alone_is_named(instructblip_t5_folder, tmp_path, tiny_data):
    key = "qformer.embeddings.position_embeddings.weight"
    folder = shortened(instructblip_t5_folder, tmp_path / "model", key, "qformer_config", 8)
    with pytest.raises(RessaError, match="and the model's Q-Former has places for 8"):
        ressa.evaluate(folder, data=tiny_data, max_new_tokens=2)


def test_a_text_model_with_learned_places_is_held_to_them_and_one_without_is_not(tmp_path):
    tokenizer = pico.tokenizer()
    long = Record("long", "What shape is it? " * 8, ("red",))
    gpt = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=1, **SIZES)).eval()
    with pytest.raises(RessaError, match=r"record 'long' has .* decoder has places for 16"):
        check_room(gpt, tokenizer, [Record("a", "What?", ("red",)), long])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    check_room(LlamaForCausalLM(LlamaConfig(max_position_embeddings=16, **sizes, **SIZES)), tokenizer, [long])


def test_a_token_that_the_model_does_not_embed_is_named_with_its_record():
    tokenizer = pico.tokenizer()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **SIZES | {"vocab_size": len(tokenizer)}))
    tokenizer.add_tokens(["owl"])
    known = Record("a", "Is it a square?", ("no",))
    check_room(model, tokenizer, [known])
    for record in (Record("b", "Is it an owl?", ("no",)), Record("b", "Is it?", ("an owl",))):
        with pytest.raises(RessaError, match=f"record 'b': 'owl' is token {len(tokenizer) - 1} and the model embeds"):
            check_room(model, tokenizer, [known, record])
