"""Whether every record has room in a model that has only so many places for tokens: known before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ressa.data.images import shown
from ressa.data.placed import picture_tokens
from ressa.data.prompts import answer_ids, encode, is_encoder_decoder, prompt_text, tokenizer_of
from ressa.data.records import Record
from ressa.errors import RessaError


def check_lengths(
    places: Mapping[str, int], processor: Any, config: Any, records: Sequence[Record], new_tokens: int | None = None
) -> None:
    """Raises RessaError for the first record that is longer than its reader has places for.

    Args:
        places: {"encoder" | "decoder" | "qformer": tokens}; a reader that is not in it reads any length.
        new_tokens: how many tokens a model may write after the prompt; None: the record's own answer follows it.
    """
    if not places or not records:
        return
    encoder_decoder = is_encoder_decoder(config)
    second = getattr(processor, "qformer_tokenizer", None)
    prompts = [prompt_text(processor, record) for record in records]
    qformer_lengths = _lengths(second, prompts) if second else [0] * len(prompts)
    counts = token_counts(processor, config, records, new_tokens)
    for record, (prompt, answer), qformer in zip(records, counts, qformer_lengths, strict=True):
        needed = {"encoder": prompt, "decoder": answer if encoder_decoder else prompt + answer, "qformer": qformer}
        for reader, limit in places.items():
            if needed[reader] > limit:
                raise RessaError(_too_long(record, needed[reader], reader, limit, new_tokens, prompt))


def token_counts(
    processor: Any, config: Any, records: Sequence[Record], new_tokens: int | None = None
) -> Iterator[tuple[int, int]]:
    """(tokens of the prompt with its picture, tokens behind it) of every record; `new_tokens` as in `check_lengths`."""
    lengths = _lengths(tokenizer_of(processor), [prompt_text(processor, record) for record in records])
    more = {seen: _around(processor, config, records, seen) for seen in {r.image is not None for r in records}}
    for record, length in zip(records, lengths, strict=True):
        answer = len(answer_ids(processor, record.target)) if new_tokens is None else max(new_tokens - 1, 0)
        yield length + more[record.image is not None], answer


def check_words(words: int, processor: Any, config: Any, records: Sequence[Record]) -> None:
    """Raises RessaError for the first record with a token that is beyond the `words` that a model embeds."""
    tokenizer = tokenizer_of(processor)
    if max(tokenizer.get_vocab().values(), default=0) < words:
        return
    pictures = picture_tokens(config)
    for record in records:
        texts = [prompt_text(processor, record), record.target if record.references else ""]
        for number in (number for ids in tokenizer(texts)["input_ids"] for number in ids):
            if number >= words and number not in pictures:  # families differ in whether they embed those
                raise RessaError(
                    f"record {shown(record.id)}: {shown(tokenizer.convert_ids_to_tokens(number))} is token {number} "
                    f"and the model embeds {words}: the tokenizer in the folder is another model's"
                )


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _around(processor: Any, config: Any, records: Sequence[Record], seen: bool) -> int:
    """How many tokens stand around the text of a prompt: special ones and, of records with a picture, its own."""
    record = next(r for r in records if (r.image is not None) == seen)
    ids = encode(processor, [record], config, answers=False)["input_ids"]
    return ids.shape[1] - _lengths(tokenizer_of(processor), [prompt_text(processor, record)])[0]


def _too_long(record: Record, needed: int, reader: str, limit: int, new_tokens: int | None, prompt: int) -> str:
    what = "with its answer " if new_tokens is None else f"with {new_tokens} new ones "
    what = "" if reader != "decoder" else what
    advice = "shorten or remove it"
    if new_tokens is not None and reader == "decoder" and prompt <= limit:
        advice += ", or let the model write fewer tokens (--max-new-tokens)"
    who = "Q-Former" if reader == "qformer" else reader
    return f"record {shown(record.id)} has {needed} tokens {what}and the model's {who} has places for {limit}: {advice}"


def with_longest(records: Sequence[Record], candidates: Sequence[tuple[str, ...]]) -> list[Record]:
    """The records with the longest of their candidates as the answer."""
    return [replace(r, answers=(max(texts, key=len),)) for r, texts in zip(records, candidates, strict=True)]
