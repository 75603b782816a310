"""Whether a model sees the pictures that its records have: a blind model still answers, and nobody would know.

A picture stands in the prompt as tokens, or the model reads it otherwise (across, in front of the text, in its
encoder). Either way another picture must change what the model says: that is tried, on one record, and not taken from
any list of families. The other picture goes the whole way through the processor, so that one that drops or flattens
pictures is found out as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ressa.data.images import Picture, shown
from ressa.data.placed import picture_tokens
from ressa.data.prompts import encode, is_encoder_decoder, prompt_text, to_device
from ressa.data.records import Record
from ressa.errors import RessaError

READS_PICTURES = ("pixel_values", "flattened_patches")  # how arguments of a forward begin that are pictures
SETTINGS = ("patch_size", "num_query_tokens", "image_seq_length", "num_image_tokens")
SIDE = 8  # of the coarse noise that stands in for a picture
# what processors and models raise for an input they do not understand
REFUSALS = (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Noise:
    """Coarse noise of the same size as `of`, or of `size`: no record's picture, however much it is scaled down."""

    of: Picture | None = None
    size: tuple[int, int] = (224, 224)
    seed: int = 0

    @property
    def where(self) -> str:
        return self.of.where if self.of else "noise"

    def open(self) -> Image.Image:
        colours = torch.randint(256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(self.seed))
        noise = Image.frombytes("RGB", (SIDE, SIDE), bytes(colours.flatten().tolist()))
        if self.of is None:
            return noise.resize(self.size, Image.Resampling.NEAREST)
        theirs = self.of.open()
        other = noise.resize(theirs.size, Image.Resampling.NEAREST)
        return other if other.tobytes() != theirs.tobytes() else replace(self, seed=self.seed + 1).open()

    def identity(self) -> str:
        return f"noise {self.seed}:{self.of.identity() if self.of else self.size}"


def how_seen(model: Any, processor: Any, records: Sequence[Record]) -> str | None:
    """How `model` sees the picture of the first record that has one: as "tokens" of its prompt, or as "pixels" alone.

    None if no record has a picture, or the model reads text only, in which pictures play no part. It costs two or
    three forwards of that record.

    Raises:
        RessaError: it does not see it: the prompt says nothing of it and no other picture changes any logit, or the
            processor or the model fails on it or makes NaN of it.
    """
    record = next((record for record in records if record.image is not None), None)
    if record is None:
        return None
    if not hasattr(processor, "image_processor"):
        if reads_pictures(model):
            kind = type(processor).__name__
            raise RessaError(f"the model reads pictures, but the processor in its folder ({kind}) reads text only")
        return None
    what = f"record {shown(record.id)}"
    batch = _encoded(model, processor, record, what)
    tokens = _picture_tokens(model, processor, batch, what)
    logits = _logits(model, batch, what)
    other = _logits(model, _encoded(model, processor, replace(record, image=Noise(record.image)), what), what)
    if not torch.equal(logits, other) and (tokens or torch.equal(logits, _logits(model, batch, what))):
        return "tokens" if tokens else "pixels"
    where = "is in the prompt" if tokens else "is not in the prompt (no image token stands there)"
    raise RessaError(f"{what}: its picture {where} and another one changes no logit: {_advice(processor, tokens > 0)}")


def sample_seen(model: Any, processor: Any) -> str | None:
    """`how_seen` of a record of its own, for who has none: a question about a picture of noise."""
    return how_seen(model, processor, [Record("of noise", "What is it?", ("yes",), image=Noise(seed=1))])


def reads_pictures(model: Any) -> bool:
    """Whether its forward takes pictures."""
    return any(name.startswith(READS_PICTURES) for name in inspect.signature(model.forward).parameters)


def _advice(processor: Any, tokens: bool) -> str:
    if tokens:
        return "the image processor or the vision part of the model makes the same of every picture"
    if unset := _missing(processor):
        return f"the model would be blind; {unset}"
    return "the model would be blind; its chat template and its processor must place the model's own image token"


def _picture_tokens(model: Any, processor: Any, batch: dict[str, Tensor], what: str) -> int:
    """How many tokens of the prompt stand for the picture. Raises RessaError if they are not the model's queries."""
    known = picture_tokens(model.config)
    found = sum(number in known for number in batch["input_ids"].flatten().tolist())
    queries = getattr(model.config, "num_query_tokens", found)
    if found and found % queries:  # transformers would take the first queries and say nothing
        raise RessaError(
            f"{what}: its picture takes {found} tokens of the prompt and the model has {queries} queries: "
            f"set num_query_tokens to {queries} in processor_config.json"
        )
    return found


def _encoded(model: Any, processor: Any, record: Record, what: str) -> dict[str, Tensor]:
    answered = replace(record, answers=("yes",))  # which an encoder-decoder writes, short whatever the record's own
    try:
        batch = encode(processor, [answered], model.config, answers=is_encoder_decoder(model.config))
    except REFUSALS as error:
        why = _missing(processor) or _unspoken(processor, record) or shown(error, limit=300)
        raise RessaError(f"{what}: the model's processor fails on it: {why}") from None
    for key, value in batch.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RessaError(f"{what}: the image processor makes NaN or infinity of its picture ({key})")
    return batch


def _missing(processor: Any) -> str | None:
    """The settings of a processor that it cannot do without and that nobody has set."""
    unset = [name for name in SETTINGS if getattr(processor, name, 0) is None]
    return f"processor_config.json sets no {' and no '.join(unset)}" if unset else None


def _unspoken(processor: Any, record: Record) -> str | None:
    """Whether the chat template passes over pictures."""
    if prompt_text(processor, record) != prompt_text(processor, replace(record, image=None)):
        return None
    return "its chat template says nothing of pictures: it must write a placeholder for a content part of type image"


def _logits(model: Any, batch: dict[str, Tensor], what: str) -> Tensor:
    """Of every place of one record, in evaluation mode."""
    inputs = to_device(batch, model)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            logits = model(**inputs, use_cache=False).logits  # keys and values of all blocks would grow with depth
    except REFUSALS as error:
        reason = shown(error, limit=300)
        raise RessaError(f"{what}: the model fails on what its processor makes of the record ({reason})") from None
    finally:
        model.train(training)
    if logits.isnan().any():
        number = str(logits.dtype).removeprefix("torch.")
        raise RessaError(f"{what}: the model's logits are NaN in {number}: compute in another format (--dtype)")
    return logits
