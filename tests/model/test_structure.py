"""Every block is placed by where it stands, every parameter is counted once, and nothing is pruned through an alias."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import pico
from families.shrink import pico_config
from families.specials import SPECIALS
from ressa.errors import RessaError
from ressa.inspection.verb import _part
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.reporting.table import when

# linears per part: vision, connector, language
COUNTS = {
    "llava": (2 * 6, 2, 2 * 7),
    "blip2_opt": (2 * 4, 2 * 6 + 4 + 1, 2 * 6),
    "blip2_t5": (2 * 4, 2 * 6 + 4 + 1, 2 * 7 + 2 * 11),
    "instructblip_t5": (2 * 4, 2 * 8 + 4 + 1, 2 * 7 + 2 * 11),
    "instructblip_llama": (2 * 4, 2 * 8 + 4 + 1, 2 * 7),
}


@pytest.mark.parametrize("family", COUNTS)
def test_each_familys_linears_are_placed(family, request):
    model, _ = load(request.getfixturevalue(f"{family}_folder"))
    parts = structure(model).parts
    assert list(parts) == ["vision", "connector", "language"]
    assert tuple(sum(len(block.linears) for block in part.blocks) for part in parts.values()) == COUNTS[family]


@pytest.mark.parametrize("family", [*COUNTS, "causal_lm"])
def test_every_linear_is_either_prunable_or_kept_for_a_reason_and_every_parameter_is_counted_once(family, request):
    model, _ = load(request.getfixturevalue(f"{family}_folder"))
    plan = structure(model)
    prunable = {name: linear for block in plan.blocks() for name, linear in block.linears.items()}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all(model.get_submodule(name) is linear for name, linear in prunable.items())
    assert not prunable.keys() & plan.kept.keys()
    assert linears.keys() <= prunable.keys() | plan.kept.keys()
    assert all(plan.kept.values())
    assert sum(part.parameters for part in plan.parts.values()) == sum(p.numel() for p in model.parameters())


def test_a_part_names_the_highest_modules_that_hold_nothing_else(llava_folder, blip2_opt_folder):
    parts = structure(load(llava_folder)[0]).parts
    assert parts["vision"].modules == ("model.vision_tower",)
    assert parts["connector"].modules == ("model.multi_modal_projector",)
    assert parts["language"].modules == ("model.language_model", "lm_head")
    assert structure(load(blip2_opt_folder)[0]).parts["connector"].modules == (
        "query_tokens",
        "qformer",
        "language_projection",
    )


def test_a_text_only_model_is_one_part_language(causal_lm_folder):
    plan = structure(load(causal_lm_folder)[0])
    assert list(plan.parts) == ["language"]
    assert [block.name for block in plan.blocks()] == ["model.layers.0", "model.layers.1"]
    assert plan.blocks(["vision"]) == []
    with pytest.raises(RessaError, match="did you mean 'vision'"):
        plan.blocks(["vison"])


def test_blocks_come_in_the_order_of_the_forward_pass(instructblip_t5_folder):
    blocks = structure(load(instructblip_t5_folder)[0]).blocks()
    stacks = [(block.part, block.stack) for block in blocks]
    assert stacks == [
        *[("vision", "encoder")] * 2,
        *[("connector", None)] * 3,
        *[("language", "encoder")] * 2,
        *[("language", "decoder")] * 2,
    ]
    assert [block.name for block in blocks][4:7] == [
        "language_projection",
        "language_model.encoder.block.0",
        "language_model.encoder.block.1",
    ]


def _size(part):
    linears = [linear for block in part.blocks for linear in block.linears.values()]
    return len(part.blocks), len(linears), round(sum(linear.weight.numel() for linear in linears) / 1e6, 1)


def test_blip2_flan_t5_xl_has_the_linears_that_the_paper_prunes():
    text = T5Config(
        d_model=2048, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    with torch.device("meta"):
        parts = structure(Blip2ForConditionalGeneration(Blip2Config(text_config=text))).parts
    assert _size(parts["vision"]) == (39, 156, 984.0)
    assert _size(parts["language"]) == (48, 432, 2717.9)


def test_instructblip_vicuna_7b_has_the_linears_that_the_paper_prunes():
    with torch.device("meta"):
        model = InstructBlipForConditionalGeneration(InstructBlipConfig(text_config=LlamaConfig(vocab_size=32001)))
    parts = structure(model).parts
    assert _size(parts["vision"]) == (39, 156, 984.0)
    assert _size(parts["language"]) == (32, 224, 6476.0)


def test_an_encoder_decoder_without_eyes_is_language_alone():
    with torch.device("meta"):
        plan = structure(T5ForConditionalGeneration(T5Config(num_layers=2)))
    assert [(block.part, block.stack) for block in plan.blocks()] == [
        *[("language", "encoder")] * 2,
        *[("language", "decoder")] * 2,
    ]
    assert plan.kept["shared"] == "embedding"
    assert plan.kept["lm_head"] == "output head"


def test_heads_and_embeddings_are_kept_tied_or_not(tmp_path, causal_lm_folder):
    for folder in (causal_lm_folder, pico.causal_lm(tmp_path, tie=False)):
        model, _ = load(folder)
        kept = structure(model).kept
        assert (kept["lm_head"], kept["model.embed_tokens"]) == ("output head", "embedding")


def test_linears_that_share_a_weight_are_not_pruned_through_either_name(causal_lm_folder):
    model, _ = load(causal_lm_folder)
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj.weight = first.up_proj.weight
    plan = structure(model)
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    assert [plan.kept[name] for name in names] == [f"tied to {name}" for name in reversed(names)]
    assert not {name for block in plan.blocks() for name in block.linears} & set(names)


def test_a_block_that_stands_in_two_places_is_one_block(causal_lm_folder):
    model, _ = load(causal_lm_folder)
    model.model.layers[1] = model.model.layers[0]
    assert [block.name for block in structure(model).blocks()] == ["model.layers.0"]


def test_a_linear_that_is_never_called_is_kept(causal_lm_folder):
    model, _ = load(causal_lm_folder)
    for layer in model.model.layers:
        layer.extra = nn.MultiheadAttention(8, 2)
    assert "without calling it" in structure(model).kept["model.layers.0.extra.out_proj"]


def test_blocks_that_stand_nowhere_are_refused_by_name(llava_folder):
    model, _ = load(llava_folder)
    model.model.ears = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    with pytest.raises(RessaError, match=r"LlavaForConditionalGeneration: cannot tell .* model\.ears"):
        structure(model)
    model.model.connector = nn.Module()
    model.model.connector.layers = model.model.ears
    del model.model.ears
    assert "model.connector.layers.1" in [block.name for block in structure(model).blocks(["connector"])]


def test_a_model_without_blocks_is_refused(causal_lm_folder):
    model, _ = load(causal_lm_folder)
    model.model.layers = nn.ModuleList()
    with pytest.raises(RessaError, match="no repeated blocks"):
        structure(model)


def _parts_of(model_type):
    config = pico_config(model_type, **SPECIALS.get(model_type, {}))
    with torch.device("meta"):
        return structure(AutoModelForImageTextToText.from_config(config))


@pytest.mark.parametrize(
    ("model_type", "towers"),
    [
        ("git", ("git.image_encoder",)),  # transformers' accessor does not find it
        ("pix2struct", ("encoder",)),  # an encoder-decoder whose encoder only reads pictures
        ("vision-encoder-decoder", ("encoder",)),
        ("t5gemma2", ("model.encoder.vision_tower",)),  # the accessor gives the encoder of text and pictures
        ("video_llava", ("model.video_tower", "model.image_tower")),
        ("deepseek_vl_hybrid", ("model.high_res_vision_model", "model.vision_model")),
    ],
)
def test_what_takes_pixels_is_vision_named_or_not(model_type, towers):
    assert _parts_of(model_type).parts["vision"].modules == towers


def test_a_merger_within_a_vision_tower_is_connector():
    parts = _parts_of("qwen3_vl").parts
    merging = [block.name for block in parts["connector"].blocks]
    assert merging == [*(f"model.visual.deepstack_merger_list.{i}" for i in range(3)), "model.visual.merger"]
    assert [block.name for block in parts["vision"].blocks] == ["model.visual.blocks.0", "model.visual.blocks.1"]


def test_an_audio_tower_is_told_of_and_never_pruned():
    plan = _parts_of("qwen2_5_omni_thinker")
    assert list(plan.parts) == ["vision", "audio", "connector", "language"]
    assert plan.parts["audio"].parameters
    assert not plan.parts["audio"].blocks
    assert "hears sound" in plan.kept["model.audio_tower.layers.0.fc1"]
    told = {name: _part(replace(part, blocks=()), None) for name, part in plan.parts.items()}
    assert {name: when(part) for name, part in told.items()} == {
        "vision": "pruned",
        "audio": "never",
        "connector": "if asked",
        "language": "pruned",
    }


def test_layers_of_two_kinds_in_one_list_are_its_blocks():
    names = [block.name for block in _parts_of("mllama").blocks(["language"])]
    assert names == ["model.language_model.layers.0", "model.language_model.layers.1"]  # the second looks across
