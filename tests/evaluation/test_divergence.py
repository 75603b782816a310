import pytest
import torch

from likelihoods import answer_sums
from ressa.data.prompts import encode
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.evaluation.verb import check_vocabularies
from ressa.model.load import load

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama", "causal_lm"]


@pytest.fixture(params=FAMILIES)
def loaded(request):
    return load(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture
def records(tiny_data):
    return read_records(tiny_data, "test")


def perturbed(loaded, scale=0.05):
    """The same model with every weight a little off."""
    model = loaded[0]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return loaded


def test_the_divergence_from_itself_is_zero(loaded, records):
    model, processor = loaded
    assert sum(kl for kl, *_ in answer_sums(model, model, processor, records[:4])) == 0


def test_the_divergence_is_the_textbook_sum_over_answer_tokens(loaded, records, request):
    family = request.node.callspec.params["loaded"]
    dense = load(request.getfixturevalue(f"{family}_folder"))[0]
    model, processor = perturbed(loaded)
    found = answer_sums(model, dense, processor, records[:4], batch_size=3)
    for record, (kl, _, _, tokens) in zip(records[:4], found, strict=True):
        batch = encode(processor, [record], model.config, answers=True)
        labels = batch["labels"][0]
        encoder_decoder = len(labels) != len(batch["input_ids"][0])
        at = [i if encoder_decoder else i - 1 for i in range(len(labels)) if labels[i] != -100]
        with torch.no_grad():
            p = dense(**batch).logits[0, at].double().softmax(-1)
            q = model(**batch).logits[0, at].double().softmax(-1)
        assert tokens == len(at)
        assert kl == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3)
        assert kl > 0


def test_models_with_different_vocabularies_are_not_compared(llava_folder):
    model, processor = load(llava_folder)
    model.resize_token_embeddings(len(processor.tokenizer) + 8)
    with pytest.raises(RessaError, match="different vocabularies"):
        check_vocabularies((model, processor), llava_folder)
