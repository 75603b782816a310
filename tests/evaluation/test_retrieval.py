"""Image-text retrieval: by the likelihood of captions, and by BLIP-2's own matching head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor, Blip2QFormerConfig, Blip2VisionConfig

import pico
import ressa
from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.evaluation import matching, retrieve
from ressa.evaluation.choose import likelihood
from ressa.model.load import load


@pytest.fixture
def pictures(tiny_data):
    records = read_records(tiny_data, "captions")
    return [Record(r.id, None, (r.caption, f"one {r.caption}"), r.caption, None, r.image) for r in records]


@pytest.fixture(scope="module")
def matcher():
    """A pico BLIP-2 with a matching head, random."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"initializer_range": 0.2}
    pieces = pico.tokenizer()
    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=pico.IMAGE_SIZE, patch_size=pico.PATCH_SIZE, **sizes),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(pieces), encoder_hidden_size=32, use_qformer_text_input=True, **sizes
        ),
        num_query_tokens=pico.QUERIES,
        image_text_hidden_size=16,
        initializer_range=0.2,
        image_token_index=None,
    )
    torch.manual_seed(0)
    model = Blip2ForImageTextRetrieval(config).eval()
    with torch.no_grad():
        model.query_tokens.normal_(std=0.5)
    return model, Blip2Processor(pico._blip_images(), pieces, num_query_tokens=pico.QUERIES)


@torch.inference_mode()
def plain(matcher, picture, caption):
    """(similarity, matching logit) of one pair by the model's own forward."""
    model, processor = matcher
    text = processor.tokenizer([caption], return_tensors="pt")
    pixels = processor.image_processor(images=picture.open_image(), return_tensors="pt")["pixel_values"]
    both = {"pixel_values": pixels, "input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
    alike = model(**both).logits_per_image.item()
    return alike, model(**both, use_image_text_matching_head=True).logits_per_image[0, 1].item()


def test_the_matching_head_scores_as_the_models_own_forward_pair_by_pair(matcher, pictures):
    captions = [c for p in pictures for c in p.answers]
    score = matching.scorer(*matcher, pictures, captions, batch_size=3)
    for i, picture in enumerate(pictures):
        want = [sum(plain(matcher, picture, caption)) for caption in captions]
        assert score(i) == pytest.approx(want, abs=1e-4)


def test_what_is_on_no_shortlist_is_not_matched(matcher, pictures, monkeypatch):
    monkeypatch.setattr(matching, "SHORTLIST", 1)
    captions = [c for p in pictures for c in p.answers]
    rows = np.array([matching.scorer(*matcher, pictures, captions, 4)(i) for i in range(len(pictures))])
    alike = np.array([[plain(matcher, p, c)[0] for c in captions] for p in pictures])
    listed = rows > matching.NOT_LISTED
    assert all(listed[i, alike[i].argmax()] for i in range(len(pictures)))
    assert all(listed[alike[:, c].argmax(), c] for c in range(len(captions)))
    assert listed.sum() <= len(pictures) + len(captions)


def test_ranks_of_a_model_with_a_head_come_from_it_and_others_from_likelihood(matcher, pictures, llava_folder):
    assert retrieve.settings_of(matcher[0]) == matching.SETTINGS
    assert len(retrieve.ranks(*matcher, pictures)) == 3 * len(pictures)
    assert retrieve.settings_of(load(llava_folder)[0]) == retrieve.LIKELIHOOD


def test_ranks_by_likelihood_are_those_of_pair_by_pair_and_are_resumed(llava_folder, pictures, tmp_path, monkeypatch):
    model, processor = load(llava_folder)
    captions = [c for p in pictures for c in p.answers]
    pairs = [[Record("p", None, (c,), c, None, p.image) for c in captions] for p in pictures]
    scores = np.array([[likelihood(model, processor, [pair], mean=True)[0] for pair in row] for row in pairs])
    want = retrieve.ranked(scores, [i for i, p in enumerate(pictures) for _ in p.answers])
    assert retrieve.ranks(model, processor, pictures, tmp_path / "cache.jsonl", batch_size=5) == want
    monkeypatch.setattr(retrieve, "likelihood", lambda *_, **__: pytest.fail("scored again"))
    assert retrieve.ranks(model, processor, pictures, tmp_path / "cache.jsonl") == want


def test_a_folder_with_a_matching_head_is_loaded_for_retrieval(matcher, tiny_data, tmp_path):
    matcher[0].save_pretrained(tmp_path / "itm")
    matcher[1].save_pretrained(tmp_path / "itm")
    lines = [f"{i}.png#{k}\ta shape {i}" for i in (0, 1, 2) for k in range(2)]
    (tmp_path / "x.token").write_text("\n".join(lines))
    told = ressa.evaluate(
        tmp_path / "itm", data=tmp_path / "x.token", images=tiny_data / "images", task="flickr30k-retrieval"
    )
    assert told["settings"]["retrieval"].startswith("matching head")
    assert (told["TR@5"], told["IR@5"], told["n"]) == (1, 1, 9)
    with pytest.raises(RessaError, match=r"perplexity: .* writes nothing"):
        ressa.evaluate(
            tmp_path / "itm",
            data=tmp_path / "x.token",
            images=tiny_data / "images",
            task="flickr30k-retrieval",
            perplexity=True,
        )


def test_a_model_that_sees_nothing_is_refused(causal_lm_folder, pictures):
    with pytest.raises(RessaError, match="text-only model"):
        retrieve.ranks(*load(causal_lm_folder), pictures)
