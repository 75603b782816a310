"""GIT joins a picture to its text within its forward: more positions come out than went in as tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM, GitProcessor

import pico
import ressa
from likelihoods import answer_sums
from ressa.data.prompts import encode
from ressa.data.records import read_records
from ressa.model.load import load

TEMPLATE = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %} {% endfor %}"
WIDTH, LAYERS, HEADS = pico.WIDTH, pico.LAYERS, pico.HEADS


@pytest.fixture(scope="module")
def git(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("git")
    pieces = pico.tokenizer()
    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    seen = {"image_size": pico.IMAGE_SIZE, "patch_size": pico.PATCH_SIZE}
    ids = {"bos_token_id": pico.BOS, "eos_token_id": pico.EOS, "pad_token_id": pico.PAD}
    config = GitConfig(vision_config=shape | seen, vocab_size=len(pieces), **shape, **ids)
    torch.manual_seed(0)
    GitForCausalLM(config).save_pretrained(folder)
    size = {"height": pico.IMAGE_SIZE, "width": pico.IMAGE_SIZE}
    processor = GitProcessor(CLIPImageProcessorPil(size=size, crop_size=size), pieces)
    processor.chat_template = TEMPLATE  # GIT is no chat model: a question stands as it is
    processor.save_pretrained(folder)
    return folder


def test_git_is_compared_with_its_dense_original(git, tiny_data):
    scores = ressa.evaluate(git, data=tiny_data, limit=3, max_new_tokens=2, against=git)
    assert scores["kl"] == 0
    assert scores["perplexity"] == scores["dense_perplexity"] > 1


def test_the_likelihood_of_an_answer_is_read_behind_the_picture(git, tiny_data):
    model, processor = load(git)
    record = read_records(tiny_data, "test")[0]
    [(_, told, _, tokens)] = answer_sums(model, None, processor, [record])
    batch = encode(processor, [record], model.config, answers=True)
    labels = batch.pop("labels")[0]
    with torch.no_grad():
        logp = model(**batch).logits[0].log_softmax(-1)[-len(labels) :]
    at = [i for i, label in enumerate(labels) if label >= 0]
    assert tokens == len(at)
    assert told == pytest.approx(-sum(float(logp[i - 1, labels[i]]) for i in at), rel=1e-4)
