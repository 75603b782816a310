"""Generated answers in batches, which do not depend on the batches.

A batched matrix product rounds otherwise than that of one row, and so does attention beside padding. Where two words
are equally likely to within that rounding, the batch would decide. So greedy decoding watches, at every step, the
margin of the best word over the second; a record whose margin is below `tie` is asked again, alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from ressa.answering.cache import resumed
from ressa.data.images import shown
from ressa.data.prompts import encode, prompt_text, shortest_first, to_device, tokenizer_of
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.settings import Progress
from ressa.tasks.base import GREEDY, Generation

# A margin of fewer roundings than this is a tie. Measured on the embedded model, batches of 8 and 32 against one by
# one: at most 2.4 in bfloat16 and 9.7 in float32; deeper models round more often, so there is room above.
TIE = {torch.bfloat16: 8, torch.float16: 32, torch.float32: 1024}


def answers(
    model: torch.nn.Module,
    processor: Any,
    records: Sequence[Record],
    cache: Path | None = None,
    batch_size: int = 32,
    how: Generation = GREEDY,
    progress: Progress | None = None,
    *,
    cut: bool = True,
) -> dict[str, str]:
    """The model's answer to each record, by record id, in the order of the records.

    Records are batched by prompt length. `cache` is a JSONL file that gets each batch as soon as it is answered. An
    answer found there is used only if it was given by the same weights, config, processor, prompt, picture and
    settings; a file that a kill cut off in the middle of a line is read up to there.

    Args:
        cut: whether an answer that does not end within `how.max_new_tokens` counts as far as it goes, or is "".

    Raises:
        RessaError: a record that asks nothing (text alone), a picture that cannot be opened, an unwritable cache.
    """
    for record in records:
        if record.question is None and (record.caption is None or not hasattr(processor, "image_processor")):
            raise RessaError(f"record {shown(record.id)} asks nothing that this model could answer")

    more = {} if cut else {"cut": cut}

    def ask(batch: list[int]) -> list[str]:
        return generate(model, processor, [records[i] for i in batch], how, **more)

    ids = [record.id for record in records]
    keys = keys_of(model, processor, records, how.settings() | more) if cache else ids
    found = resumed(ids, keys, by_length(processor, records), ask, cache, batch_size, progress)
    return dict(zip(ids, found, strict=True))


def by_length(processor: Any, records: Sequence[Record]) -> Callable[[list[int]], list[int]]:
    """What puts indices of records in the order of their prompts' lengths."""
    return lambda todo: [todo[i] for i in shortest_first(processor, [records[i] for i in todo], answers=False)]


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model's own mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def generate(
    model: Any, processor: Any, records: Sequence[Record], how: Generation = GREEDY, *, cut: bool = True
) -> list[str]:
    """Answers to one batch of records, without special tokens and surrounding space; `cut` as for `answers`.

    Greedy answers are those that each record gets alone; those of beams may depend on the batch in rare near-ties.
    """
    watch = Margin()
    texts, steps_B, ended = _generate(model, processor, records, how, watch if how.num_beams == 1 else None)
    if watch.margins and len(records) > 1:
        least_B = watch.least(steps_B)
        for i in (least_B < tie(next(model.parameters()).dtype)).nonzero().flatten().tolist():
            alone = _generate(model, processor, [records[i]], how, Margin())
            texts[i], ended[i] = alone[0][0], alone[2][0]
    return [text if cut or end else "" for text, end in zip(texts, ended, strict=True)]


def tie(dtype: torch.dtype) -> float:
    """The margin of the best word over the second, as a share of the logits' size, below which rounding may decide."""
    return TIE.get(dtype, 1024) * torch.finfo(dtype).eps


class Margin(LogitsProcessor):
    """Records the margin of the best word over the second, relative to the logits' size, at every step."""

    def __init__(self) -> None:
        self.margins: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Takes logits (B, V) of one step and gives them back."""
        best_B2 = scores.float().topk(2).values
        size_B = best_B2.abs().amax(1).clamp(min=1.0)
        self.margins.append(((best_B2[:, 0] - best_B2[:, 1]) / size_B).cpu())
        return scores

    def least(self, steps_B: torch.Tensor) -> torch.Tensor:
        """The smallest margin (B) of each row among its own first steps (B): what follows its end is padding."""
        margins_BT = torch.stack(self.margins, 1)
        over_BT = torch.arange(margins_BT.shape[1]) >= steps_B[:, None]
        return margins_BT.masked_fill(over_BT, float("inf")).amin(1)


def _generate(
    model: Any, processor: Any, records: Sequence[Record], how: Generation, watch: Margin | None
) -> tuple[list[str], torch.Tensor, list[bool]]:
    """(texts, the number of steps (B) that each took, its end token included, whether there is one)."""
    batch = to_device(encode(processor, records, model.config, answers=False), model)
    tokenizer = tokenizer_of(processor)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    watching = {"logits_processor": LogitsProcessorList([watch])} if watch else {}
    with eval_mode(model):
        # one answer to a record, whatever the model's generation_config.json says
        ids = model.generate(**batch, **how.settings(), **watching, pad_token_id=pad, num_return_sequences=1)
    prompt = batch["input_ids"]
    if ids.shape[1] >= prompt.shape[1] and torch.equal(ids[:, : prompt.shape[1]], prompt):
        ids = ids[:, prompt.shape[1] :]  # decoder-only models repeat the prompt
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return texts, *_steps(model, ids[:, -len(watch.margins) :] if watch else ids)


def _steps(model: Any, ids_BT: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    end = model.generation_config.eos_token_id
    ends = torch.tensor(end if isinstance(end, list) else [-1 if end is None else end], device=ids_BT.device)
    over_BT = torch.isin(ids_BT, ends)
    steps_B = torch.where(over_BT.any(1), over_BT.int().argmax(1) + 1, ids_BT.shape[1]).cpu()
    return steps_B, over_BT.any(1).tolist()


def fingerprint(model: Any, processor: Any) -> str:
    """A hash of everything but the question that decides an answer: weights, configs, tokenizer, image processor."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(data.view(torch.uint8).numpy().data)
    backend = getattr(tokenizer_of(processor), "backend_tokenizer", None)
    words = json.loads(backend.to_str()) if backend else tokenizer_of(processor).get_vocab()
    images = getattr(processor, "image_processor", None)
    parts = [_settled(model.config.to_dict()), _settled(model.generation_config.to_dict()), _settled(words)]
    parts.append(images.to_dict() if images else {})
    digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _settled(config: dict[str, Any]) -> dict[str, Any]:
    """Without what says where a model lay, who wrote it, or how the last call happened to pad."""
    transient = ("_name_or_path", "transformers_version", "padding", "truncation")
    return {key: value for key, value in config.items() if key not in transient}


def keys_of(model: Any, processor: Any, records: Sequence[Record], settings: Any, *more: Sequence[Any]) -> list[str]:
    """For each record a hash of all that decides its answer; `more` are sequences of further parts, one a record."""
    whole = [fingerprint(model, processor), settings]
    parts = []
    for i, record in enumerate(records):
        picture = record.image.identity() if record.image else None
        parts.append([*whole, prompt_text(processor, record), picture, *(m[i] for m in more)])
    return [hashlib.blake2b(json.dumps(part).encode(), digest_size=16).hexdigest() for part in parts]
