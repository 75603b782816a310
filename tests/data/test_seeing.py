"""A model that does not see the pictures of its records is found out, by every verb, however it came to be blind."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    GitProcessor,
)

import pico
import pico_examples
import ressa
from families.shrink import pico_config
from ressa import compare
from ressa.data.prompts import encode
from ressa.data.records import Record
from ressa.data.seeing import Noise, how_seen, sample_seen
from ressa.errors import RessaError
from ressa.model.load import load

SIZE = {"height": 32, "width": 32}
TEXT_ONLY = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
JOINED = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
PRINTED = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ASKED = Record("r7", "What colour is it?", ("red",), image=Noise(seed=3, size=(50, 40)))


def edited(folder, out, *, template=None, config=None, **processor):
    """A copy of a model folder with other settings of its processor (None: unset), template or config."""
    copy = shutil.copytree(folder, out)
    for name, changes in (("processor_config.json", processor), ("config.json", config or {})):
        told = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(told | changes))
    if template is not None:
        (copy / "chat_template.jinja").write_text(template)
    return copy


def images(folder, **changes):
    return json.loads((folder / "processor_config.json").read_text())["image_processor"] | changes


@pytest.mark.parametrize("name", ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama"])
def test_families_that_show_tokens_see_by_them(name, request):
    assert how_seen(*load(request.getfixturevalue(f"{name}_folder")), [ASKED]) == "tokens"


@pytest.mark.parametrize("build", [pico_examples.mllama, pico_examples.gemma3, pico_examples.florence2])
def test_a_family_that_looks_across_and_ones_with_tokens_of_their_own_see(build, tmp_path):
    model, processor = load(build(tmp_path / "model"))
    if build is pico_examples.florence2:
        processor.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    assert sample_seen(model, processor) == "tokens"


@pytest.mark.parametrize("model_type", ["git", "blip"])
def test_families_without_tokens_see_because_another_picture_changes_the_logits(model_type):
    config = pico_config(model_type)
    for part in (config, getattr(config, "text_config", config)):
        part.vocab_size = len(pico.tokenizer())
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    if model_type == "git":
        processor = GitProcessor(CLIPImageProcessorPil(size=SIZE, crop_size=SIZE), pico.tokenizer())
    else:
        processor = BlipProcessor(BlipImageProcessorPil(size=SIZE), pico.tokenizer())
    processor.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    assert how_seen(model, processor, [ASKED]) == "pixels"
    patches = next(module for name, module in model.named_modules() if name.endswith("patch_embedding"))
    torch.nn.init.zeros_(patches.weight)
    with pytest.raises(RessaError, match="another one changes no logit: the model would be blind"):
        how_seen(model, processor, [ASKED])


def test_noise_in_a_model_is_not_taken_for_sight(llava_folder):
    """Logits that differ from call to call, as of a product on a GPU, prove nothing without tokens in the prompt."""
    model, processor = load(llava_folder)
    model.config.image_token_id = None
    model.forward = lambda **inputs: SimpleNamespace(logits=torch.randn(1, 5, 400))
    with pytest.raises(RessaError, match="no image token stands there"):
        how_seen(model, processor, [ASKED])


BLIND = {
    "num_query_tokens is not set": ("blip2_opt", {"num_query_tokens": None}, "set num_query_tokens"),
    "nor with an encoder-decoder": ("blip2_t5", {"num_query_tokens": None}, "set num_query_tokens"),
    "nor with a Q-Former that reads": ("instructblip_t5", {"num_query_tokens": None}, "sets no num_query_tokens"),
    "fewer tokens than queries": ("blip2_opt", {"num_query_tokens": 3}, "takes 3 tokens .* has 4 queries"),
    "patch_size is not set": ("llava", {"patch_size": None}, "sets no patch_size"),
    "another patch_size": ("llava", {"patch_size": 8}, "the model fails on what its processor makes .* do not match"),
    "a template of text parts": ("llava", {"template": TEXT_ONLY}, "template says nothing of pictures"),
    "a template of strings": ("llava", {"template": JOINED}, "r7.*it knows text only.*chat_template.jinja"),
    "a template that prints lists": ("llava", {"template": PRINTED}, "processor fails on it.*0 <image> tokens"),
    "tokens of a wrong id": ("llava", {"config": {"image_token_index": 7}}, "do not match, tokens: 0"),
    "an id beyond the words": ("llava", {"config": {"image_token_index": 70000}}, "do not match, tokens: 0"),
}


@pytest.mark.parametrize("case", BLIND)
def test_a_blind_model_is_refused_with_the_reason(case, request, tmp_path):
    name, changes, words = BLIND[case]
    folder = edited(request.getfixturevalue(f"{name}_folder"), tmp_path / "model", **changes)
    with pytest.raises(RessaError, match=words) as refusal:
        how_seen(*load(folder), [ASKED])
    assert "\n" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rescale_factor": 0.0}, "is in the prompt and another one changes no logit: the image processor"),
        ({"image_std": [0, 0, 0]}, "the image processor makes NaN or infinity of its picture"),
        ({"size": {"height": 48, "width": 48}}, "the model fails on what its processor makes"),
    ],
)
def test_pictures_that_the_image_processor_spoils_are_not_seen(change, words, llava_folder, tmp_path):
    folder = edited(llava_folder, tmp_path / "model", image_processor=images(llava_folder, **change))
    with pytest.raises(RessaError, match=words):
        how_seen(*load(folder), [ASKED])


def test_a_dead_connector_is_told_from_a_dead_processor_by_no_one_and_still_refused(llava_folder):
    model, processor = load(llava_folder)
    torch.nn.init.zeros_(model.model.multi_modal_projector.linear_2.weight)
    with pytest.raises(RessaError, match="the vision part of the model makes the same of every picture"):
        how_seen(model, processor, [ASKED])


def test_a_later_record_whose_picture_gets_no_token_is_named(llava_folder):
    model, processor = load(llava_folder)
    processor.chat_template = "{% for p in messages[0]['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    processor.chat_template += (
        "{% elif 'blind' not in messages[0]['content'][-1]['text'] %}<image>{% endif %}{% endfor %}"
    )
    records = [ASKED, Record("r8", "blind?", ("red",), image=Noise(size=(50, 40)))]
    plain = processor.__class__.__call__

    def lenient(self, text, images, **options):  # as processors that do not count
        return plain(self, text=text, images=images[:1] if len(text) > 1 else None, **options)

    processor.__class__ = type("Lenient", (processor.__class__,), {"__call__": lenient})
    for batch in (records, records[1:]):
        with pytest.raises(RessaError, match=r"record 'r8': its picture has no token in the prompt"):
            encode(processor, batch, model.config, answers=False)


def test_text_records_and_text_models_have_nothing_to_see(llava_folder, causal_lm_folder):
    assert how_seen(*load(llava_folder), [Record("t", "What is it?", ("red",))]) is None
    assert how_seen(*load(causal_lm_folder), [ASKED]) is None
    assert sample_seen(*load(causal_lm_folder)) is None


def test_a_processor_that_reads_text_only_is_refused_where_the_model_sees(llava_folder):
    model, processor = load(llava_folder)
    with pytest.raises(RessaError, match=r"the processor in its folder .* reads text only"):
        how_seen(model, processor.tokenizer, [ASKED])


@pytest.fixture
def blind(blip2_opt_folder, tmp_path):
    return edited(blip2_opt_folder, tmp_path / "blind", num_query_tokens=None)


def test_prune_repair_evaluate_and_compare_refuse_a_blind_model_and_inspect_says_so(
    blind, blip2_opt_folder, tiny_data, tmp_path
):
    words = "has no token in the prompt"
    with pytest.raises(RessaError, match=words):
        ressa.prune(blind, tmp_path / "out", data=tiny_data, method="wanda", samples=4)
    with pytest.raises(RessaError, match=words):
        ressa.prune(blind, tmp_path / "out", data=tiny_data, method="magnitude", allocation="owl", sparsity=0.5)
    for asked in ({}, {"choices": None, "against": blip2_opt_folder}, {"perplexity": True}):
        with pytest.raises(RessaError, match=words):
            ressa.evaluate(blind, data=tiny_data, limit=2, **asked)
    with pytest.raises(RessaError, match=words):
        compare(blind, tmp_path / "compared", data=tiny_data, methods=["wanda"])
    ressa.prune(blind, tmp_path / "pruned", method="magnitude")  # looks at no picture
    with pytest.raises(RessaError, match=words):
        ressa.repair(tmp_path / "pruned", tmp_path / "repaired", teacher=blip2_opt_folder, data=tiny_data, steps=1)
    assert not (tmp_path / "out").exists()
    assert words in ressa.inspect(blind)["pictures"]


def test_what_is_written_says_how_pictures_were_seen(llava_folder, tiny_data, tmp_path):
    assert (
        ressa.prune(llava_folder, tmp_path / "out", data=tiny_data, method="wanda", samples=4)["pictures"] == "tokens"
    )
    assert ressa.evaluate(tmp_path / "out", data=tiny_data, limit=2, max_new_tokens=2)["pictures"] == "tokens"
    assert ressa.inspect(tmp_path / "out")["pictures"] == "tokens"
