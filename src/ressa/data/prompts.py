"""From records to model inputs: the prompt each family was trained with, its tokens, its answer, one padded batch.

A record gives the same ids, labels and masks alone and inside a batch; only padding is added around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from ressa.data.images import shown
from ressa.data.placed import check_placed
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.families import QFORMER, of_processor

IGNORED = -100  # the label that the cross-entropy of torch and transformers skips


def prompt_text(processor: Any, record: Record) -> str:
    """What the model reads before it answers.

    The chat template of the processor or of its tokenizer, with a placeholder for the picture; the paper's own prompts
    for BLIP-2 and InstructBLIP; for a text-only model without template the bare question. A caption record asks for a
    caption, and its prefix is the beginning of the answer (BLIP-2, section 3.3: the prefix is all that those models
    read); a `{"text": ...}` record has an empty prompt. The picture of a record plays no part in a text-only model.

    Raises:
        RessaError: a vision-language processor without a chat template, or a template that fails on the record.
    """
    question = record.question and _plain(processor, record.question)
    prefix = _plain(processor, record.prefix or "")
    family, template = of_processor(processor), _template(processor)
    if question is None and record.caption is None:
        return tokenizer_of(processor).bos_token or "" if _writes_specials(processor) else ""
    if family.question:
        return prefix or family.caption if question is None else family.question.format(question)
    if template is None and hasattr(processor, "image_processor"):
        raise RessaError("the model's processor has no chat template; add chat_template.jinja to its folder")
    if template is None:
        return question or prefix
    return _render(processor, template, question or family.caption, record.image is not None, record.id) + prefix


def encode(processor: Any, records: Sequence[Record], config: Any, *, answers: bool) -> dict[str, torch.Tensor]:
    """One padded batch of `records`, ready for `model(**batch)` or `model.generate(**batch)`.

    With `answers` (teacher forcing) a decoder-only model gets prompt + answer + end token in `input_ids`, padded on
    the right, and `labels` (B, T) that are -100 on prompt and padding; an encoder-decoder gets the prompt in
    `input_ids` and answer + end token in `labels`. The answer is `record.target`. Without, there are prompts alone,
    padded on the left for decoder-only models and on the right for encoders. Q-Former text is always padded on the
    right (its positions count from the left). Text is int64 (B, T), pictures are float32 as the image processor makes
    them.

    Args:
        config: the model's config (is it encoder-decoder?).

    Raises:
        RessaError: a picture that cannot be opened, or a record without one where the model needs it.
    """
    family, prompts = of_processor(processor), [prompt_text(processor, record) for record in records]
    encoded = _process(processor, prompts, records)
    check_placed(processor, records, encoded["input_ids"], config)
    text = {key: value for key, value in encoded.items() if _is_text(key, value, encoded["input_ids"])}
    batch = {key: _stacked(value) for key, value in encoded.items() if key not in text}
    if not family.reads_both_ways and not any(any(row) for row in text.get("token_type_ids", [])):
        text.pop("token_type_ids", None)  # all zeros say nothing, and most decoders refuse the name
    encoder_decoder = is_encoder_decoder(config)
    if not encoder_decoder:
        _open_end(processor, prompts, text)
    prompt_lengths = [len(row) for row in text["input_ids"]]
    if answers:
        targets = [
            answer_ids(processor, record.target, prompt="" if encoder_decoder else prompt, end=_end(processor, config))
            for record, prompt in zip(records, prompts, strict=True)
        ]
        text["labels"] = targets if encoder_decoder else _appended(text, targets, int(family.reads_both_ways))
    left = not answers and not encoder_decoder
    if (seen := batch.get(family.across)) is not None:
        batch[family.across] = _as_long(seen, prompt_lengths, [len(row) for row in text["input_ids"]], left)
    for key, rows in text.items():
        batch[key] = _padded(rows, _pad_value(processor, key), left and QFORMER not in key)
    return batch


def shortest_first(processor: Any, records: Sequence[Record], *, answers: bool) -> list[int]:
    """The order of `records` by their number of text tokens (with `answers`: prompt and answer), ties as they stand."""
    texts = [prompt_text(processor, r) + (f" {r.target}" if answers else "") for r in records]
    lengths = [len(ids) for ids in tokenizer_of(processor)(texts, add_special_tokens=False)["input_ids"]]
    return sorted(range(len(records)), key=lengths.__getitem__)


def answer_ids(processor: Any, answer: str, *, prompt: str = "", end: int | None = None) -> list[int]:
    """Token ids of an answer that follows `prompt`, with the end token (the tokenizer's, if `end` names no other).

    The answer is tokenised apart from the prompt, so that the prompt's ids are the same with and without it. Where the
    prompt ends in the middle of a line ("... Short answer:") and the tokenizer does not mark word starts by itself, the
    space between them belongs to the answer, as when the model generates it.
    """
    tokenizer = tokenizer_of(processor)
    text = _plain(processor, answer)
    if prompt and not prompt[-1].isspace() and not prompt.endswith(tuple(tokenizer.all_special_tokens)):
        one = tokenizer("a", add_special_tokens=False)["input_ids"]
        if tokenizer.decode(one + one) == "aa":
            text = f" {text}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id if end is None else end
    return ids if end is None else [*ids, end]


def tokenizer_of(processor: Any) -> Any:
    """The language model's tokenizer; a text-only model's processor is that tokenizer."""
    return getattr(processor, "tokenizer", processor)


def is_encoder_decoder(config: Any) -> bool:
    """Whether the language model is an encoder-decoder (InstructBLIP says so only in its text config)."""
    inner = getattr(config, "text_config", None)
    return bool(getattr(config, "is_encoder_decoder", False) or getattr(inner, "is_encoder_decoder", False))


def to_device(batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The batch where the model is; pictures also in its dtype."""
    first = next(model.parameters())
    return {k: v.to(first.device, first.dtype if v.is_floating_point() else None) for k, v in batch.items()}


def _end(processor: Any, config: Any) -> int | None:
    """The end token that generation stops at, where it is not the tokenizer's."""
    inner = getattr(config, "text_config", None) if of_processor(processor).inner_end else None
    end = getattr(inner, "eos_token_id", None)
    return end if isinstance(end, int) else None


def _plain(processor: Any, text: str) -> str:
    """Text of a record without the placeholder, which stands for one picture wherever a record writes it."""
    token = getattr(processor, "image_token", None)
    name = str(getattr(token, "content", token)) if token is not None else "<image>"
    return text.replace(name, "").strip() if name in text else text


def _template(processor: Any) -> str | None:
    if of_processor(processor).question:
        return None  # a template of the language model's own would not place the picture
    for holder in (processor, tokenizer_of(processor)):
        template = getattr(holder, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return template
    return None


def _writes_specials(processor: Any) -> bool:
    """Whether prompts hold the start token already, so that the tokenizer must add none.

    Tokenizers never add to their own template; processors do, unless it starts with the start token (transformers'
    `ProcessorMixin.apply_chat_template` decides the same way).
    """
    template, bos = _template(processor), tokenizer_of(processor).bos_token
    if template is None or not hasattr(processor, "image_processor"):
        return template is not None
    return bool(bos) and _render(processor, template, "?", False, "").startswith(bos)


def _render(processor: Any, template: str, question: str, picture: bool, ident: str) -> str:
    text = {"type": "text", "text": question}
    content = [{"type": "image"}, text] if picture else [text]
    messages = [{"role": "user", "content": content if hasattr(processor, "image_processor") else question}]
    try:
        return processor.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:
        if type(error).__module__.startswith("jinja2"):  # which renders templates, for transformers
            raise RessaError(f"record {shown(ident)}: the model's chat template refuses it ({shown(error)})") from None
        if not isinstance(error, TypeError | ValueError | AttributeError | KeyError):  # what an expression in it raises
            raise
        knows = "it takes a message for a string: it knows text only" if "str" in str(error) else shown(error)
        raise RessaError(
            f"record {shown(ident)}: the model's chat template fails on it ({knows}); add a chat_template.jinja "
            "that writes the content parts of a message, and a placeholder for the one of type image"
        ) from None


def _process(processor: Any, prompts: list[str], records: Sequence[Record]) -> dict[str, Any]:
    """One call of the processor, nothing padded: text as lists of ids, pictures as arrays."""
    options: dict[str, Any] = {"text": prompts, "padding": False}
    if _writes_specials(processor):
        options["add_special_tokens"] = False
    if not hasattr(processor, "image_processor"):
        return dict(processor(**options))
    family, blind = of_processor(processor), next((r for r in records if r.image is None), None)
    if blind and family.question:
        raise RessaError(f"record {shown(blind.id)} has no image, which this model cannot do without")
    # a list a record: some processors (Gemma 3) take a plain list for the pictures of one
    images = [[] if record.image is None else [record.open_image()] for record in records]
    options["images"] = images if any(images) else None
    if not family.one_array:
        return dict(processor(**options))
    encoded = dict(processor(**options | {"padding": True}))
    encoded.pop("labels", None)  # PaliGemma's, which are not ours
    masks = encoded["attention_mask"]
    for key in (key for key in encoded if key in ("input_ids", "attention_mask") or key.endswith("token_type_ids")):
        encoded[key] = [list(compress(row, mask)) for row, mask in zip(encoded[key], masks, strict=True)]
    return encoded


def _is_text(key: str, value: Any, ids: list[list[int]]) -> bool:
    """Rows of numbers, one per token (picture sizes are rows of numbers too, but of another length)."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        return False
    return QFORMER in key or [len(row) for row in value] == [len(row) for row in ids]


def _stacked(value: Any) -> torch.Tensor:
    """Laid out as `return_tensors="pt"` does: in bfloat16 another layout rounds otherwise, and a close answer turns."""
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(np.stack(value)))


def _open_end(processor: Any, prompts: list[str], text: dict[str, list[list[int]]]) -> None:
    """Take off an end token that the tokenizer put behind a prompt: the answer comes there."""
    tokenizer = tokenizer_of(processor)
    for row, prompt in enumerate(prompts):
        ids = text["input_ids"][row]
        if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
            for key, rows in text.items():
                if QFORMER not in key:
                    rows[row] = rows[row][:-1]


def _appended(text: dict[str, list[list[int]]], targets: list[list[int]], kind: int) -> list[list[int]]:
    """Append the answers to every row of text in place, as tokens of this `kind`; return the labels."""
    labels = [[IGNORED] * len(ids) + target for ids, target in zip(text["input_ids"], targets, strict=True)]
    for key, rows in text.items():
        if QFORMER not in key:
            fill = {"input_ids": None, "attention_mask": 1}.get(key, kind)
            text[key] = [
                row + (target if fill is None else [fill] * len(target))
                for row, target in zip(rows, targets, strict=True)
            ]
    return labels


def _as_long(mask_BTPN: torch.Tensor, before: list[int], now: list[int], left: bool) -> torch.Tensor:
    """Which pictures (P, of N tiles) each token looks at across, for rows that grew: answers look where prompts end."""
    rows = [
        torch.cat([mask[:old], mask[old - 1 : old].expand(new - old, -1, -1)])
        for mask, old, new in zip(mask_BTPN, before, now, strict=True)
    ]
    side = "left" if left else "right"
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)


def _pad_value(processor: Any, key: str) -> int:
    if key == "labels":
        return IGNORED
    if not key.endswith("input_ids"):
        return 0
    tokenizer = processor.qformer_tokenizer if QFORMER in key else tokenizer_of(processor)
    # Any id will do, since padding is masked: models without a pad token have an end token.
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _padded(rows: list[list[int]], value: int, left: bool) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor(
        [[value] * (width - len(row)) + row if left else row + [value] * (width - len(row)) for row in rows]
    )
