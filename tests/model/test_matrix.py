"""Conv1D and patch embeddings are matrices too: pruned as the linear that computes the same."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import pico
from ressa import prune, repair
from ressa.calibration.samples import samples
from ressa.errors import RessaError
from ressa.methods import METHODS
from ressa.model.folder import read_manifest, zeros
from ressa.model.load import load
from ressa.model.matrix import AsLinear, is_patch_embedding, matrix, patches
from ressa.model.structure import structure
from ressa.patterns import NofM
from ressa.statistics import Gram

SMALL = {"samples": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def gpt2_folder(models_root):
    """GPT-2, every linear of whose blocks is a Conv1D."""
    pieces = pico.tokenizer()
    sizes = {"n_embd": pico.WIDTH, "n_layer": pico.LAYERS, "n_head": pico.HEADS, "initializer_range": pico.STD}
    config = GPT2Config(vocab_size=len(pieces), n_positions=512, bos_token_id=pico.BOS, eos_token_id=pico.EOS, **sizes)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(models_root / "gpt2")
    pieces.save_pretrained(models_root / "gpt2")
    return models_root / "gpt2"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in pico.SENTENCES))
    return file


@pytest.mark.parametrize(
    ("kind", "side", "size"),
    [(nn.Conv1d, 4, (9,)), (nn.Conv2d, (4, 2), (8, 7)), (nn.Conv3d, (2, 4, 4), (2, 9, 8))],
    ids=["1d, a rest", "2d, oblong, a rest", "3d, a rest"],
)
def test_a_patch_embedding_is_a_linear_on_its_patches(kind, side, size):
    convolution, x = kind(3, 5, side, side), torch.randn(2, 3, *size)
    weight_OI, x_BTI = AsLinear(convolution).weight, patches(convolution, x)
    y_BTO = convolution(x).flatten(2).mT
    torch.testing.assert_close(nn.functional.linear(x_BTI, weight_OI, convolution.bias), y_BTO)


@pytest.mark.parametrize("told", [{"stride": 2}, {"padding": 1}, {"groups": 3}, {"dilation": 2}], ids=str)
def test_a_convolution_whose_patches_overlap_or_have_gaps_is_none(told):
    assert is_patch_embedding(nn.Conv2d(3, 6, 4, 4))
    assert not is_patch_embedding(nn.Conv2d(3, 6, 4, **{"stride": 4} | told))


@pytest.mark.parametrize("method", METHODS)
def test_conv1d_weights_are_n_of_m_along_their_inputs_and_on_disk(method, gpt2_folder, texts, tmp_path):
    manifest = prune(gpt2_folder, tmp_path / "out", data=texts, method=method, **SMALL)
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    layers = {name: module for name, module in pruned.named_modules() if isinstance(module, Conv1D)}
    assert layers.keys() == manifest["matrices"].keys()
    assert all(NofM(2, 4).holds(layer.weight.T) for layer in layers.values())
    found = zeros(tmp_path / "out")
    assert {found[name].sparsity for name in layers} == {0.5}


def test_a_conv1d_is_pruned_as_the_linear_that_computes_the_same(gpt2_folder, texts, tmp_path):
    prune(gpt2_folder, tmp_path / "out", data=texts, method="sparsegpt", **SMALL)
    name, heard = "transformer.h.0.attn.c_attn", []
    (dense, pieces), (pruned, _) = load(gpt2_folder), load(tmp_path / "out")
    dense.get_submodule(name).register_forward_hook(lambda module, args, out: heard.append(args[0]))
    gram = Gram(pico.WIDTH)
    for batch in samples(texts, pieces, dense.config, SMALL["samples"], batch_size=1):
        dense(**batch)
        gram.add(heard.pop())
    expected_OI = METHODS["sparsegpt"](dense.get_submodule(name).weight.T, gram, NofM(2, 4))
    torch.testing.assert_close(pruned.get_submodule(name).weight.T, expected_OI, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("allocation", ["owl", "ecoflap", "ecoflap-zeroth", "magnitude"])
def test_allocations_measure_conv1d_too(allocation, gpt2_folder, texts, tmp_path):
    manifest = prune(gpt2_folder, tmp_path / "out", data=texts, sparsity="50%", allocation=allocation, **SMALL)
    assert manifest["together"]["zeros"] == manifest["together"]["weights"] // 2


def test_a_patch_embedding_is_pruned_only_when_asked(llava_folder, tiny_data, tmp_path):
    told = {"data": tiny_data, "method": "sparsegpt", **SMALL}
    name = next(name for name, why in structure(load(llava_folder)[0]).kept.items() if "patch embedding" in why)
    plain = prune(llava_folder, tmp_path / "plain", **told)
    asked = prune(llava_folder, tmp_path / "asked", patch_embedding=True, **told)
    assert asked["matrices"].keys() - plain["matrices"].keys() == {name}
    assert asked["matrices"][name]["shape"] == [pico.WIDTH, 3 * pico.PATCH_SIZE**2]
    kept, pruned = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / out).get_submodule(name) for out in ("plain", "asked")
    )
    assert NofM(2, 4).holds(matrix(pruned, pruned.weight))
    assert (kept.weight != 0).all()


def test_repair_leaves_a_pruned_patch_embedding_as_it_is(llava_folder, tiny_data, tmp_path):
    pruned, repaired = tmp_path / "pruned", tmp_path / "repaired"
    prune(llava_folder, pruned, data=tiny_data, method="magnitude", patch_embedding=True, connector="2:4")
    repair(pruned, repaired, teacher=llava_folder, data=tiny_data, steps=2, batch_size=4)
    name = next(name for name in read_manifest(pruned)["matrices"] if "patch_embedding" in name)
    weights = [AutoModelForImageTextToText.from_pretrained(p).get_submodule(name).weight for p in (pruned, repaired)]
    assert torch.equal(*weights)


def test_a_model_without_a_patch_embedding_is_refused(causal_lm_folder, texts, tmp_path):
    with pytest.raises(RessaError, match="no patch embedding whose patches do not overlap: leave it out"):
        prune(causal_lm_folder, tmp_path / "out", data=texts, patch_embedding=True)
    assert not (tmp_path / "out").exists()
