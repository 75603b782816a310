"""Which tokens of a batch count in calibration, and how much. Padding never does.

Shapes: B sequences of a batch, T tokens, Q query tokens of a Q-Former, I input features.
"""

# ruff: noqa: N815  (shape suffixes are part of our names)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ressa import families
from ressa.data.prompts import IGNORED, is_encoder_decoder
from ressa.errors import RessaError, unknown
from ressa.families import PLAIN, Family
from ressa.model.structure import Block

KINDS = ("image", "text", "answer")


@dataclass(frozen=True)
class TokenWeights:
    """How much each token of one batch counts, by who reads it. None: all count the same.

    `language_BT` is what a decoder-only model reads, or the encoder; `decoder_BT` what an encoder's decoder reads;
    `qformer_BT` the text of a Q-Former, which stands behind its queries; `pixels` is the mask of padded pictures, and
    `seen_BP` says which pictures (or tiles) of a record its text may look at across. `visual_BT` marks the family's
    `visual_tokens`.
    """

    language_BT: Tensor | None = None
    decoder_BT: Tensor | None = None
    qformer_BT: Tensor | None = None
    pixels: Tensor | None = None
    patch_size: int = 0
    image: float = 1.0
    seen_BP: Tensor | None = None
    visual_BT: Tensor | None = None
    family: Family = PLAIN

    def of(self, block: Block, name: str, x: Tensor, *, crossed: bool) -> Tensor | None:
        """The weights of the tokens of `x`, (B, T, I) or (B * T, I), that linear `name` reads; None: all one.

        `crossed` says that `x` came into the block from another stack, as a cross-attention's keys and values do.

        Raises:
            RessaError: `x` has a number of tokens that is not the batch's. Guessing could let padding count.
        """
        if block.part == "vision":
            return _patches(self.pixels, self.patch_size, x)
        tokens = x.numel() // x.shape[-1]
        if block.part == "connector":
            weights = None if crossed else self._qformer(name, x)
        elif block.stack == "decoder" and self.decoder_BT is not None and not crossed:
            weights = self.decoder_BT
        elif crossed and self.decoder_BT is None:
            weights = self._across(tokens)
        else:
            weights = self._with_picture(x)
        if weights is None:
            return None
        if self.visual_BT is not None and weights.numel() != tokens:
            weights = weights[self.visual_BT if self.family.visual_experts in name else ~self.visual_BT]
        if weights.shape == x.shape[: weights.ndim] and x.ndim > weights.ndim + 1:  # several streams of each token
            return weights.reshape(*weights.shape, *[1] * (x.ndim - 1 - weights.ndim)).expand(x.shape[:-1]).to(x.device)
        if weights.numel() != tokens:
            raise RessaError(
                f"{name} reads {tokens} tokens and its batch has {weights.numel()}: "
                "cannot tell which of them are padding; leave its part out"
            )
        return weights.reshape(x.shape[:-1]).to(x.device)

    def _across(self, tokens: int) -> Tensor | None:
        """A decoder-only model looks across at pictures; the tokens of those that no text looks at are padding."""
        if self.seen_BP is None or tokens % self.seen_BP.numel():
            return None
        return self.seen_BP.repeat_interleave(tokens // self.seen_BP.numel(), dim=1)

    def _with_picture(self, x: Tensor) -> Tensor | None:
        """The weights of the text, and of the picture's tokens where the model has joined them to it."""
        if not self.family.joins or self.language_BT is None or x.ndim != 3:
            return self.language_BT
        more = max(x.shape[1] - self.language_BT.shape[1], 0)
        return nn.functional.pad(
            self.language_BT, (more, 0) if self.family.joins == "before" else (0, more), value=self.image
        )

    def _qformer(self, name: str, x: Tensor) -> Tensor | None:
        """The weights of queries and text; None for what reads queries only."""
        if self.qformer_BT is None or x.ndim != 3 or not families.reads_question(name):
            return None
        queries = x.shape[1] - self.qformer_BT.shape[1]
        return nn.functional.pad(self.qformer_BT, (max(queries, 0), 0), value=self.image)


def token_weights(batch: Mapping[str, Any], config: Any, counts: Mapping[str, float] | None = None) -> TokenWeights:
    """The weights of one batch (as the model's forward takes it), for a model with this `config`.

    Args:
        counts: how much an image, text and answer token counts, as in {"image": 0.1}; 1 each unless given. In a
            decoder-only model answers are the tokens with a label; in an encoder-decoder all the decoder reads.
    """
    count, family = check_counts(counts), families.of(config)
    mask_BT, labels_BT = batch.get("attention_mask"), batch.get("labels")
    ids_BT = batch.get("input_ids")
    language_BT = _language(ids_BT, mask_BT, config, count)
    decoder_BT = None
    if is_encoder_decoder(config):
        decoder_BT = batch.get("decoder_attention_mask")
        if decoder_BT is None and labels_BT is not None:
            decoder_BT = labels_BT != IGNORED
        decoder_BT = None if decoder_BT is None else decoder_BT.float() * count["answer"]
    elif labels_BT is not None and language_BT is not None:
        answers_BT = (labels_BT != IGNORED) & (language_BT.new_ones(1).bool() if mask_BT is None else mask_BT.bool())
        language_BT = torch.where(answers_BT, count["answer"], language_BT)
    qformer_BT, visual_BT = batch.get("qformer_attention_mask"), batch.get(family.visual_tokens)
    seen = batch.get(family.across)
    return TokenWeights(
        language_BT,
        decoder_BT,
        None if qformer_BT is None else qformer_BT.float() * count["text"],
        batch.get("pixel_attention_mask"),
        getattr(getattr(config, "vision_config", None), "patch_size", 0),
        count["image"],
        None if seen is None else seen.bool().any(dim=1).flatten(1).float() * count["image"],
        None if visual_BT is None else visual_BT.bool(),
        family,
    )


def check_counts(counts: Mapping[str, float] | None) -> dict[str, float]:
    """`counts` with 1 for what it leaves out. Raises RessaError for an unknown kind of token or a negative count."""
    full = dict.fromkeys(KINDS, 1.0)
    if not isinstance(counts, Mapping | None):
        raise RessaError(f"token_weights: is no mapping of {', '.join(KINDS)} to numbers")
    for kind, count in (counts or {}).items():
        if kind not in full:
            raise unknown("kind of token", kind, KINDS)
        if not isinstance(count, int | float) or not 0 <= count < float("inf"):
            raise RessaError(f"the weight of {kind} tokens is {count}: give a number of at least 0")
        full[kind] = float(count)
    if not any(full.values()):
        raise RessaError("image, text and answer tokens all weigh 0: nothing would be left to calibrate on")
    return full


def _language(ids_BT: Tensor | None, mask_BT: Tensor | None, config: Any, count: dict[str, float]) -> Tensor | None:
    if ids_BT is None:
        return None if mask_BT is None else mask_BT.float() * count["text"]
    weights_BT = torch.full(ids_BT.shape, count["text"])
    image_token = getattr(config, "image_token_id", None)
    if image_token is not None:
        weights_BT = torch.where(ids_BT == image_token, count["image"], weights_BT)
    return weights_BT if mask_BT is None else weights_BT * mask_BT


def _patches(pixels: Tensor | None, patch_size: int, x: Tensor) -> Tensor | None:
    """A picture's mask (..., H, W) as a mask of its patches: one counts if any of its pixels does.

    Some models are given a mask of patches at once, (B, T).
    """
    if pixels is not None and pixels.shape == x.shape[:-1]:
        return pixels.float().to(x.device)
    if pixels is None or not isinstance(patch_size, int) or not 0 < patch_size <= min(pixels.shape[-2:]):
        return None
    flat = pixels.reshape(-1, 1, *pixels.shape[-2:]).float()
    patches_BT = nn.functional.max_pool2d(flat, patch_size).flatten(1)
    # pictures that are padding as a whole are dropped by the models themselves before their tower
    patches_BT = patches_BT[patches_BT.any(dim=1)]
    return patches_BT.to(x.device) if patches_BT.shape == x.shape[:-1] else None
