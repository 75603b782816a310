from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from transformers.models.ernie4_5_vl_moe.processing_ernie4_5_vl_moe import Ernie4_5_VLMoeProcessor

import pico
from ressa.data.prompts import _process, answer_ids, encode, prompt_text, shortest_first, tokenizer_of
from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.model.load import load

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama", "causal_lm"]
BOS_TEMPLATE = (
    "<s>{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' A:' }}{% endif %}"
)


@pytest.fixture(params=FAMILIES)
def loaded(request):
    return load(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture
def seeing(llava_folder):
    """A LLaVA processor of the test's own, to change."""
    return load(llava_folder)


@pytest.fixture
def records(tiny_data):
    asked, told = read_records(tiny_data, "train"), read_records(tiny_data, "captions")
    return [asked[0], asked[1], told[0], asked[4]]


def test_prompts_of_each_family(records, request):
    asked, told = records[1], records[2]
    expected = {
        "llava": ("USER: <image>\nWhat colour is it? ASSISTANT: ", "USER: <image>\nA short image caption. ASSISTANT: "),
        "blip2_opt": ("Question: What colour is it? Short answer:", "a photo of"),
        "blip2_t5": ("Question: What colour is it? Short answer:", "a photo of"),
        "instructblip_t5": ("Question: What colour is it? Short answer:", "A short image caption."),
        "instructblip_llama": ("Question: What colour is it? Short answer:", "A short image caption."),
        "causal_lm": ("What colour is it?", ""),
    }
    for family, prompts in expected.items():
        processor = load(request.getfixturevalue(f"{family}_folder"))[1]
        assert (prompt_text(processor, asked), prompt_text(processor, told)) == prompts


def test_a_prefix_is_read_and_the_rest_of_the_caption_is_learnt(records, request):
    told = replace(records[2], prefix="a red", caption="square")
    expected = {
        "llava": "USER: <image>\nA short image caption. ASSISTANT: a red",
        **dict.fromkeys(FAMILIES[1:], "a red"),  # BLIP-2's way of training: nothing but the beginning of the caption
    }
    for family, prompt in expected.items():
        model, processor = load(request.getfixturevalue(f"{family}_folder"))
        assert prompt_text(processor, told) == prompt
        batch = encode(processor, [told], model.config, answers=True)
        labels = batch["labels"][batch["labels"] >= 0]
        assert tokenizer_of(processor).decode(labels, skip_special_tokens=True).strip() == "square"
        read = tokenizer_of(processor).decode(batch["input_ids"][0], skip_special_tokens=True)
        assert read.endswith("a red" if "t5" in family else "a red square")


def test_the_template_may_be_the_tokenizers(seeing, records):
    processor = seeing[1]
    want = prompt_text(processor, records[0])
    processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None
    assert prompt_text(processor, records[0]) == want


def test_a_processor_without_any_template_is_refused(seeing, records):
    seeing[1].chat_template = seeing[1].tokenizer.chat_template = None
    with pytest.raises(RessaError, match=r"no chat template; add chat_template\.jinja"):
        prompt_text(seeing[1], records[0])


def test_a_template_that_refuses_the_record_is_an_error_of_one_line(seeing, records):
    seeing[1].chat_template = "{{ raise_exception('only systems\nmay speak') }}"
    with pytest.raises(RessaError, match="chat template refuses it") as caught:
        prompt_text(seeing[1], records[0])
    assert "\n" not in str(caught.value)


def test_a_text_only_models_template_is_used(causal_lm_folder, records):
    tokenizer = AutoTokenizer.from_pretrained(causal_lm_folder)
    tokenizer.chat_template = BOS_TEMPLATE
    assert prompt_text(tokenizer, records[1]) == "<s>What colour is it? A:"


def test_a_text_record_is_all_answer(loaded):
    model, processor = loaded
    record = Record("1", None, ("one two three",))
    assert prompt_text(processor, record) == ""
    if hasattr(processor, "num_query_tokens"):
        with pytest.raises(RessaError, match="has no image"):
            encode(processor, [record], model.config, answers=True)
    else:
        batch = encode(processor, [record], model.config, answers=True)
        assert batch["labels"].tolist() == batch["input_ids"].tolist()


def start_added(tokenizer):
    """The tokenizer, made to put its start token in front of every text, as Llama's does."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def test_one_start_token_whoever_writes_it_and_whatever_else_is_in_the_batch(seeing, causal_lm_folder, records):
    tokenizer = start_added(AutoTokenizer.from_pretrained(causal_lm_folder))
    model, processor = seeing
    start_added(processor.tokenizer)
    plain = Record("1", None, ("one two three",))
    for holder, config in ((processor, model.config), (tokenizer, model.config.text_config)):
        for template in (holder.chat_template, BOS_TEMPLATE):
            holder.chat_template = template
            both = encode(holder, [plain, records[0]], config, answers=True)["input_ids"]
            assert ((both == tokenizer.bos_token_id).sum(1) == 1).all()
            assert (both[:, 0] == tokenizer.bos_token_id).all()


def test_the_placeholder_in_a_records_own_text_does_not_count_as_a_picture(seeing, records):
    model, processor = seeing
    sly = replace(records[0], question="<image>\nIs it <image> red?", answers=("<image>no",))
    ids = encode(processor, [sly], model.config, answers=True)["input_ids"]
    assert (ids == processor.image_token_id).sum() == 4  # the pico tower's patches
    assert processor.tokenizer.decode(answer_ids(processor, "<image>no"), skip_special_tokens=False) == "no</s>"


def test_labels_are_the_answer_and_its_end_and_nothing_else(loaded, records):
    model, processor = loaded
    tokenizer = tokenizer_of(processor)
    labels = encode(processor, records, model.config, answers=True)["labels"]
    for row, record in zip(labels, records, strict=True):
        kept = row[row != -100].tolist()
        assert kept[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(kept[:-1]).strip() == record.target


def test_blip2_answers_end_with_the_token_that_its_generation_stops_at(blip2_opt_folder, records):
    model, processor = load(blip2_opt_folder)
    model.config.text_config.eos_token_id = 7  # BLIP-2 OPT really has the line break here
    labels = encode(processor, records[:1], model.config, answers=True)["labels"]
    assert labels[0, -1] == 7


def test_prompt_ids_are_the_same_with_and_without_the_answer(loaded, records):
    model, processor = loaded
    for record in records[:2]:
        asked = encode(processor, [record], model.config, answers=False)["input_ids"][0]
        taught = encode(processor, [record], model.config, answers=True)["input_ids"][0]
        assert taught[: len(asked)].tolist() == asked.tolist()


@pytest.mark.parametrize("answers", [True, False])
def test_a_record_is_encoded_alike_alone_and_in_a_batch(loaded, records, answers):
    model, processor = loaded
    batch = encode(processor, records[:2], model.config, answers=answers)
    for i, record in enumerate(records[:2]):
        alone = encode(processor, [record], model.config, answers=answers)
        assert set(alone) == set(batch)
        for key, value in alone.items():
            row = batch[key][i]
            if key == "pixel_values":
                assert torch.equal(row, value[0])
                continue
            mask = batch["qformer_attention_mask" if key.startswith("qformer") else "attention_mask"][i].bool()
            seen = row[row != -100] if key == "labels" else row[mask]
            assert seen.tolist() == (value[value != -100] if key == "labels" else value[0]).tolist()


@torch.inference_mode()
def losses(model, batch):
    """Each answer token's loss, by row."""
    labels, logits = batch["labels"], model(**batch).logits
    if not getattr(model.config.get_text_config(), "is_encoder_decoder", False):
        labels, logits = labels[:, 1:], logits[:, :-1]
    rows = []
    for label, logit in zip(labels, logits, strict=True):
        kept = label != -100
        rows.append(torch.nn.functional.cross_entropy(logit[kept], label[kept], reduction="none"))
    return rows


def test_padding_changes_no_answer_tokens_loss(loaded, records):
    model, processor = loaded
    together = losses(model, encode(processor, records, model.config, answers=True))
    for record, row in zip(records, together, strict=True):
        (alone,) = losses(model, encode(processor, [record], model.config, answers=True))
        torch.testing.assert_close(row, alone, atol=2e-5, rtol=1e-5)


def test_the_models_own_loss_is_the_mean_of_these(loaded, records):
    model, processor = loaded
    batch = encode(processor, records, model.config, answers=True)
    torch.testing.assert_close(model(**batch).loss.detach(), torch.cat(losses(model, batch)).mean())


def test_prompts_are_padded_left_for_decoders_right_for_encoders_and_the_qformer(loaded, records):
    model, processor = loaded
    batch = encode(processor, records[:2], model.config, answers=False)
    assert batch["attention_mask"].sum(1).unique().numel() == 2  # the two prompts differ in length
    encoder_decoder = getattr(model.config.get_text_config(), "is_encoder_decoder", False)
    full = 0 if encoder_decoder else -1
    assert batch["attention_mask"][:, full].all()
    assert not batch["attention_mask"][:, -1 - full].all()
    if "qformer_attention_mask" in batch:
        assert batch["qformer_attention_mask"][:, 0].all()


def test_a_seeing_model_takes_records_with_and_without_picture_in_one_batch(seeing, records):
    model, processor = seeing
    blind = replace(records[1], image=None)
    batch = encode(processor, [records[0], blind, records[3]], model.config, answers=True)
    assert batch["pixel_values"].shape[0] == 2
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [4, 0, 4]
    (alone,) = losses(model, encode(processor, [blind], model.config, answers=True))
    torch.testing.assert_close(losses(model, batch)[1], alone, atol=2e-5, rtol=1e-5)


def test_the_space_before_an_answer_belongs_to_it_only_where_the_prompt_leaves_it_out(causal_lm_folder):
    tokenizer = AutoTokenizer.from_pretrained(causal_lm_folder)
    apart = tokenizer.decode(answer_ids(tokenizer, "red", prompt="Short answer:")[:-1])
    assert apart == " red"
    for prompt in ("", "Short answer: ", "Short answer:\n", "</s>"):
        assert tokenizer.decode(answer_ids(tokenizer, "red", prompt=prompt)[:-1]) == "red"


def test_an_end_token_behind_the_prompt_gives_way_to_the_answer(causal_lm_folder, records):
    model, tokenizer = load(causal_lm_folder)
    plain = encode(tokenizer, records[:2], model.config, answers=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    ended = encode(tokenizer, records[:2], model.config, answers=True)
    assert ended["input_ids"].tolist() == plain["input_ids"].tolist()
    assert ended["labels"].tolist() == plain["labels"].tolist()


def test_shortest_first_orders_by_tokens_and_keeps_ties(causal_lm_folder):
    tokenizer = AutoTokenizer.from_pretrained(causal_lm_folder)
    asked = [Record(str(i), question, ("a",)) for i, question in enumerate(["x y z x y z", "x", "x y", "x"])]
    assert shortest_first(tokenizer, asked, answers=False) == [1, 3, 2, 0]


def test_ernies_kinds_of_tokens_fit_rows_of_different_lengths():
    """Its processor makes an array of the ids, so that they must be padded for it."""

    class Ernie(Ernie4_5_VLMoeProcessor):
        image_processor, chat_template = object(), None
        image_token_id, image_start_token_id, image_end_token_id = 4, 5, 6
        video_token_id, video_start_token_id, video_end_token_id = 901, 902, 903

        def __init__(self):
            self.tokenizer = pico.tokenizer()
            self.tokenizer.chat_template = None

        def __call__(self, text, images, **options):
            made = self.tokenizer(text, **options)
            made["moe_mm_token_type_ids"] = self.create_moe_mm_token_type_ids(made["input_ids"])
            return made

    texts = ["what is it", "what is it that stands there"]
    encoded = _process(Ernie(), texts, [Record(text, text, ()) for text in texts])
    lengths = [len(ids) for ids in encoded["input_ids"]]
    assert lengths[0] < lengths[1]
    assert [len(row) for row in encoded["moe_mm_token_type_ids"]] == lengths
    assert encoded["input_ids"] == pico.tokenizer()(texts)["input_ids"]
