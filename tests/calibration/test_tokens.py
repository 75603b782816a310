"""Padding never counts, and every linear is weighted by the tokens it really reads."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ressa.calibration.gather import gather
from ressa.calibration.samples import samples
from ressa.calibration.tokens import TokenWeights, token_weights
from ressa.calibration.walk import walk
from ressa.errors import RessaError
from ressa.methods import get
from ressa.model.load import load
from ressa.model.structure import Block, structure
from ressa.patterns import NofM
from ressa.statistics import Gram, InputNorm

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama"]
IMAGE = 4


@pytest.fixture(params=FAMILIES)
def family(request, tiny_data):
    """(model, batches of different lengths) of each family."""
    model, processor = load(request.getfixturevalue(f"{request.param}_folder"))
    return model, samples(tiny_data, processor, model.config, 12, batch_size=4)


@pytest.fixture
def t5(instructblip_t5_folder, tiny_data):
    """Statistics of all linears of InstructBLIP T5 on one batch whose padded questions and answers are equally long."""
    model, processor = load(instructblip_t5_folder)
    (batch,) = samples(tiny_data, processor, model.config, 6, batch_size=6)
    more = batch["input_ids"].shape[1] - batch["labels"].shape[1]
    batch["labels"] = nn.functional.pad(batch["labels"], (0, more), value=-100)
    return _gathered(model, [batch], [token_weights(batch, model.config)], InputNorm), batch


def _gathered(model, batches, weights, needs):
    found = {}
    for visit in walk(model, structure(model).blocks(), batches):
        found |= gather(visit, needs, weights)
    return found


def _padded(batch, by):
    """The batch with `by` more tokens of padding on every sequence in it."""
    fill = {"labels": -100}
    return {
        key: value if value.is_floating_point() else nn.functional.pad(value, (0, by), value=fill.get(key, 0))
        for key, value in batch.items()
    }


def _masks(model, batches, *, count_padding=False):
    """Which weights Wanda at 2:4 keeps, in every block of a copy of the model, one after another."""
    trial, masks = copy.deepcopy(model), {}
    weights = [TokenWeights() if count_padding else token_weights(batch, trial.config) for batch in batches]
    for visit in walk(trial, structure(trial).blocks(), batches):
        found = gather(visit, InputNorm, weights)
        for name, linear in visit.block.linears.items():
            linear.weight.data = get("wanda")(linear.weight, found[name], NofM(2, 4))
            masks[name] = linear.weight != 0
    return masks


def test_padding_a_batch_changes_no_mask(family):
    model, batches = family
    masks = _masks(model, batches)
    padded = _masks(model, [_padded(batch, 7) for batch in batches])
    assert masks.keys() == padded.keys()
    assert [name for name in masks if not torch.equal(masks[name], padded[name])] == []


def test_padding_would_change_masks_if_it_counted(family):
    model, batches = family
    masks = _masks(model, batches, count_padding=True)
    padded = _masks(model, [_padded(batch, 7) for batch in batches], count_padding=True)
    assert any(not torch.equal(masks[name], padded[name]) for name in masks)


def test_batching_changes_no_statistic(family, tiny_data, request):
    model, batches = family
    folder = request.getfixturevalue(f"{request.node.callspec.params['family']}_folder")
    alone = samples(tiny_data, load(folder)[1], model.config, 12, batch_size=1)
    together = _gathered(model, batches, [token_weights(batch, model.config) for batch in batches], InputNorm)
    one_by_one = _gathered(model, alone, [token_weights(batch, model.config) for batch in alone], InputNorm)
    for name, statistic in together.items():
        assert statistic.tokens == one_by_one[name].tokens
        torch.testing.assert_close(statistic.norm_I, one_by_one[name].norm_I, rtol=1e-4, atol=1e-5)


def test_keys_and_values_of_cross_attention_are_weighted_by_the_encoders_mask(t5):
    found, batch = t5
    encoder, decoder = int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())
    assert encoder < batch["attention_mask"].numel()
    assert decoder < batch["labels"].numel()
    block = "language_model.decoder.block.0.layer"
    assert found[f"{block}.1.EncDecAttention.k"].tokens == encoder
    assert found[f"{block}.1.EncDecAttention.v"].tokens == encoder
    assert found[f"{block}.1.EncDecAttention.q"].tokens == decoder
    assert found[f"{block}.2.DenseReluDense.wi_0"].tokens == decoder
    assert found["language_model.encoder.block.0.layer.1.DenseReluDense.wo"].tokens == encoder


def test_queries_of_the_qformer_always_count_and_its_padding_never(t5):
    found, batch = t5
    text, sequences, queries, patches = int(batch["qformer_attention_mask"].sum()), 6, 4, 5
    assert text < batch["qformer_attention_mask"].numel()
    layer = "qformer.encoder.layer.0"
    assert found[f"{layer}.attention.attention.query"].tokens == text + sequences * queries
    assert found[f"{layer}.intermediate.dense"].tokens == text
    assert found[f"{layer}.intermediate_query.dense"].tokens == sequences * queries
    assert found[f"{layer}.crossattention.attention.query"].tokens == sequences * queries
    assert found[f"{layer}.crossattention.attention.key"].tokens == sequences * patches
    assert found["language_projection"].tokens == sequences * queries
    assert found["vision_model.encoder.layers.0.mlp.fc1"].tokens == sequences * patches


def test_linears_that_read_the_same_tensor_share_one_statistic(t5):
    found, _ = t5
    layer = "language_model.decoder.block.0.layer"
    own = [found[f"{layer}.0.SelfAttention.{name}"] for name in "qkv"]
    cross = {name: found[f"{layer}.1.EncDecAttention.{name}"] for name in "qkvo"}
    gates = [found[f"{layer}.2.DenseReluDense.{name}"] for name in ("wi_0", "wi_1", "wo")]
    assert own[0] is own[1] is own[2]
    assert cross["k"] is cross["v"]
    assert len({id(statistic) for statistic in cross.values()}) == 3
    assert gates[0] is gates[1] is not gates[2]


def test_a_shared_gram_is_that_of_all_tokens_of_all_batches(llava_folder, tiny_data):
    model, processor = load(llava_folder)
    batches = samples(tiny_data, processor, model.config, 6, batch_size=4)
    name = "model.language_model.layers.0.self_attn.q_proj"
    seen, linear = [], model.get_submodule(name)
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    x_TI = torch.cat([x[batch["attention_mask"].bool()] for x, batch in zip(seen, batches, strict=True)])
    found = _gathered(model, batches, [token_weights(batch, model.config) for batch in batches], Gram)
    torch.testing.assert_close(found[name].gram_II, x_TI.T @ x_TI / len(x_TI))


def test_image_text_and_answer_tokens_can_be_weighted():
    batch = {
        "input_ids": torch.tensor([[IMAGE, IMAGE, 7, 8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "labels": torch.tensor([[-100, -100, -100, 8, 9, -100]]),
    }
    config = SimpleNamespace(image_token_id=IMAGE)
    weights = token_weights(batch, config, {"image": 0.5, "answer": 3})
    assert weights.language_BT.tolist() == [[0.5, 0.5, 1, 3, 3, 0]]
    assert token_weights(batch, config).language_BT.tolist() == [[1, 1, 1, 1, 1, 0]]


def test_everything_a_decoder_behind_an_encoder_reads_is_answer():
    batch = {
        "input_ids": torch.tensor([[IMAGE, 7, 8, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        "labels": torch.tensor([[8, 9, -100]]),
    }
    weights = token_weights(batch, SimpleNamespace(image_token_id=IMAGE, is_encoder_decoder=True), {"answer": 2})
    assert weights.language_BT.tolist() == [[1, 1, 1, 0]]
    assert weights.decoder_BT.tolist() == [[2, 2, 0]]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"images": 1}, "unknown kind of token 'images': did you mean 'image'"),
        ({"text": -1}, "weight of text tokens is -1"),
        ({"text": float("nan")}, "weight of text tokens is nan"),
        ({"image": 0, "text": 0, "answer": 0}, "nothing would be left"),
    ],
)
def test_wrong_weights_are_refused(counts, message):
    with pytest.raises(RessaError, match=message):
        token_weights({}, SimpleNamespace(), counts)


def test_tokens_that_cannot_be_told_apart_are_refused():
    block = Block("layers.0", "language", nn.Linear(2, 2), {}, "decoder")
    weights = TokenWeights(language_BT=torch.ones(2, 3))
    assert weights.of(block, "fc", torch.zeros(6, 2), crossed=False).shape == (6,)
    with pytest.raises(RessaError, match="fc reads 8 tokens and its batch has 6"):
        weights.of(block, "fc", torch.zeros(2, 4, 2), crossed=False)


def test_patches_of_padded_pictures_do_not_count():
    pixels = torch.zeros(1, 2, 4, 4)  # two pictures, of which the second is padding as a whole
    pixels[0, 0, :2] = 1
    weights = TokenWeights(pixels=pixels, patch_size=2)
    block = Block("vision.layers.0", "vision", nn.Linear(3, 3), {}, "encoder")
    assert weights.of(block, "fc", torch.zeros(1, 4, 3), crossed=False).tolist() == [[1, 1, 0, 0]]
    assert weights.of(block, "fc", torch.zeros(1, 5, 3), crossed=False) is None


def _language(weights, x, *, crossed=False):
    return weights.of(
        Block("layers.0", "language", nn.Identity(), {}, "decoder"), "layers.0.k_proj", x, crossed=crossed
    )


def test_tokens_of_pictures_that_a_decoder_looks_across_at_count_unless_no_text_looks_at_them():
    mask = torch.zeros(2, 3, 1, 2)  # records, text, pictures, tiles
    mask[0], mask[1, :, :, 0] = 1, 1
    batch = {"attention_mask": torch.ones(2, 3), "cross_attention_mask": mask}
    x = torch.randn(2, 2 * 5, 8)
    seen = _language(token_weights(batch, SimpleNamespace(model_type="mllama")), x, crossed=True)
    assert seen.tolist() == [[1] * 10, [1] * 5 + [0] * 5]
    assert _language(token_weights({"attention_mask": torch.ones(2, 3)}, SimpleNamespace()), x, crossed=True) is None


@pytest.mark.parametrize(("model_type", "expected"), [("git", [2, 2, 1, 0]), ("udop", [1, 0, 2, 2])])
def test_a_picture_that_the_model_joins_to_the_text_counts_where_it_stands(model_type, expected):
    batch = {"input_ids": torch.tensor([[7, 0]]), "attention_mask": torch.tensor([[1, 0]])}
    weights = token_weights(batch, SimpleNamespace(model_type=model_type), {"image": 2})
    assert _language(weights, torch.randn(1, 4, 8)).tolist() == [expected]


def test_each_of_several_streams_of_a_token_counts_as_the_token():
    weights = token_weights({"attention_mask": torch.tensor([[1, 0]])}, SimpleNamespace())
    assert _language(weights, torch.randn(1, 2, 3, 8)).tolist() == [[[1, 1, 1], [0, 0, 0]]]


def test_a_mask_of_patches_is_taken_as_it_is_and_one_of_tiles_tells_nothing():
    block = Block("layers.0", "vision", nn.Identity(), {})
    patches = TokenWeights(pixels=torch.tensor([[1, 1, 0]]), patch_size=2)
    assert patches.of(block, "fc", torch.randn(1, 3, 8), crossed=False).tolist() == [[1, 1, 0]]
    tiles = TokenWeights(pixels=torch.tensor([[True]]), patch_size=2)  # padding tiles never enter the tower
    assert tiles.of(block, "fc", torch.randn(1, 3, 8), crossed=False) is None


def test_experts_of_pictures_and_of_text_read_their_own_tokens():
    """Ernie 4.5 sends a picture's tokens to experts of their own, without the others."""
    ids = torch.tensor([[7, IMAGE, IMAGE, 8, 9], [7, IMAGE, 8, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "moe_mm_token_type_ids": (ids == IMAGE).long()}
    weights = token_weights(batch, SimpleNamespace(image_token_id=IMAGE, model_type="ernie4_5_vl_moe"), {"image": 0.5})
    block = Block("layers.0", "language", nn.Identity(), {}, "decoder")
    told = weights.of(block, "layers.0.mlp.vision_moe.experts.down_proj.0", torch.zeros(3, 2), crossed=False)
    assert told.tolist() == [0.5, 0.5, 0.5]
    told = weights.of(block, "layers.0.mlp.text_moe.experts.down_proj.0", torch.zeros(7, 2), crossed=False)
    assert told.tolist() == [1, 1, 1, 1, 1, 0, 0]
    told = weights.of(block, "layers.0.self_attn.q_proj", torch.zeros(2, 5, 2), crossed=False)
    assert told.tolist() == [[1, 0.5, 0.5, 1, 1], [1, 0.5, 1, 0, 0]]
