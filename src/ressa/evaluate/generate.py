"""Greedy answers in batches, kept on disk as they come, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ressa.data.images import shown
from ressa.data.prompts import encode, prompt_text, shortest_first, to_device, tokenizer_of
from ressa.data.records import Record
from ressa.errors import RessaError

Progress = Callable[[int, int, str], None]


def settings(max_new_tokens: int) -> dict[str, Any]:
    """How answers are generated: greedily."""
    return {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}


def answers(
    model: torch.nn.Module,
    processor: Any,
    records: Sequence[Record],
    cache: Path | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    progress: Progress | None = None,
) -> dict[str, str]:
    """The model's answer to each record, by record id, in the order of the records.

    Records are batched by prompt length. `cache` is a JSONL file that gets each batch as soon as it is answered. An
    answer found there is used only if it was given by the same weights, config, processor, prompt, picture and
    settings; a file that a kill cut off in the middle of a line is read up to there.

    Raises:
        RessaError: a record that asks nothing (text alone), a picture that cannot be opened, an unwritable cache.
    """
    prompts = [prompt_text(processor, record) for record in records]
    for record in records:
        if record.question is None and (record.caption is None or not hasattr(processor, "image_processor")):
            raise RessaError(f"record {shown(record.id)} asks nothing that this model could answer")
    keys = _keys(model, processor, records, prompts, max_new_tokens) if cache else [r.id for r in records]
    known = _read(cache) if cache else {}
    todo = [i for i, key in enumerate(keys) if key not in known]
    todo = [todo[i] for i in shortest_first(processor, [records[i] for i in todo], answers=False)] if todo else []
    for start in range(0, len(todo), batch_size):
        if progress:
            progress(len(records) - len(todo) + start, len(records), "answering")
        chunk = todo[start : start + batch_size]
        texts = generate(model, processor, [records[i] for i in chunk], max_new_tokens)
        lines = [{"key": keys[i], "id": records[i].id, "answer": text} for i, text in zip(chunk, texts, strict=True)]
        known |= {line["key"]: line["answer"] for line in lines}
        if cache:
            _append(cache, lines)
    if progress:
        progress(len(records), len(records), "answering")
    return {record.id: known[key] for record, key in zip(records, keys, strict=True)}


@contextmanager
def measuring(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model's own mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def generate(model: Any, processor: Any, records: Sequence[Record], max_new_tokens: int = 32) -> list[str]:
    """Answers to one batch of records, without special tokens and surrounding space."""
    batch = to_device(encode(processor, records, model.config, answers=False), model)
    tokenizer = tokenizer_of(processor)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with measuring(model):
        ids = model.generate(**batch, **settings(max_new_tokens), pad_token_id=pad)
    prompt = batch["input_ids"]
    if ids.shape[1] >= prompt.shape[1] and torch.equal(ids[:, : prompt.shape[1]], prompt):
        ids = ids[:, prompt.shape[1] :]  # decoder-only models repeat the prompt
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


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
    passing = ("_name_or_path", "transformers_version", "padding", "truncation")
    return {key: value for key, value in config.items() if key not in passing}


def _keys(
    model: Any, processor: Any, records: Sequence[Record], prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    whole = [fingerprint(model, processor), settings(max_new_tokens)]
    parts = ([*whole, p, r.image.identity() if r.image else None] for r, p in zip(records, prompts, strict=True))
    return [hashlib.blake2b(json.dumps(part).encode(), digest_size=16).hexdigest() for part in parts]


def _read(cache: Path) -> dict[str, str]:
    if not cache.is_file():
        return {}
    known = {}
    for line in cache.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            known[entry["key"]] = entry["answer"]
        except (ValueError, TypeError, KeyError):
            continue  # a line cut off by a kill: its batch is answered again
    return known


def _append(cache: Path, lines: Sequence[dict[str, str]]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("ab+") as file:
            end = file.tell()
            file.seek(max(end - 1, 0))
            broken = end > 0 and file.read(1) != b"\n"  # or the next line would continue the broken one
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            file.write((b"\n" if broken else b"") + text.encode())
    except OSError as error:
        raise RessaError(f"{cache}: cannot be written ({error.strerror})") from None
