"""What single families of models do otherwise than the rest: one table, and the functions that read it.

Whatever can be told from a model's structure is told from it (`model/roots.py`, `data/seeing.py`) and stands in no
table. A row here is needed only where nothing in the model or its inputs says so. A new quirk of a family is one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Names = tuple[str, ...]

# BLIP-2 (Li et al. 2023, section 4) and InstructBLIP (Dai et al. 2023, appendix C); RESSA evaluates with the same.
QUESTION = "Question: {} Short answer:"
CAPTION = "A short image caption."

# Words within the names of modules for which transformers has no accessor: what stands between vision and language
CONNECTORS: Names = ("qformer", "query_tokens", "projector", "connector", "resampler", "perceiver", "merger", "adapter")
CONNECTORS += ("aligner", "projection")
PATCHES: Names = ("projection",)  # but within a vision tower that is the name of patch embeddings
QFORMER = "qformer"  # also in the names of its inputs
POSITIONS: Names = ("embed_positions", "position_embeddings", "positions_embed", "wpe")  # vision towers have others


@dataclass(frozen=True)
class Family:
    """The quirks of one family. A field that is left out says that it does as most do."""

    question: str = ""
    """The prompt of a question, which stands at {}. Such a family has no chat template, and its processor puts the
    tokens of a picture in front, without which it cannot do. Empty: the chat template makes the prompt."""

    caption: str = CAPTION
    """What asks for a caption where the record begins none; the chat template is put around it, if there is one."""

    inner_end: bool = False
    """Generation stops at the end token of `text_config`, not the tokenizer's: BLIP-2 OPT ends a line, not a text."""

    wording: str = "chat"
    """Which of a task's wordings and generation settings (`Task.asks`, `Task.how`) the family has (chat, blip)."""

    decoder_wording: str = ""
    """The same where its language model is a decoder alone. Empty: no other."""

    reads_both_ways: bool = False
    """The prompt is read both ways, as tokens of kind 0, and the answer from left to right, as tokens of kind 1."""

    one_array: bool = False
    """The processor makes one array of all ids, so that rows have to be padded for it."""

    joins: Literal["", "before", "behind"] = ""
    """Where the model joins a picture's tokens to the text by itself; nothing in its inputs tells."""

    across: str = ""
    """The input that says which pictures each token looks at across, (B, T, P) or (B, T, P, tiles)."""

    visual_tokens: str = ""
    """The input (B, T) that marks the tokens for which there are `visual_experts`."""

    visual_experts: str = ""
    """What stands in the names of experts that read the `visual_tokens` alone; other experts read all others."""

    matcher: str = ""
    """The class of transformers with a head for image-text matching, which no auto class loads."""

    lmms: str = "huggingface"
    """The model class of lmms-eval (`lmms_eval/models`, version 0.7) that loads it: by default the one that takes any
    model with a chat template. Empty: it has none."""


# By transformers' `model_type`.
FAMILIES: dict[str, Family] = {
    "blip-2": Family(
        question=QUESTION,
        caption="a photo of",
        inner_end=True,
        wording="blip",
        matcher="Blip2ForImageTextRetrieval",
        lmms="",
    ),
    "ernie4_5_vl_moe": Family(one_array=True, visual_tokens="moe_mm_token_type_ids", visual_experts=".vision_moe."),
    "gemma3": Family(lmms="gemma3"),
    "git": Family(joins="before"),
    "idefics": Family(across="image_attention_mask"),
    "idefics2": Family(lmms="idefics2"),
    "instructblip": Family(
        question=QUESTION, inner_end=True, wording="blip", decoder_wording="vicuna", lmms="instructblip"
    ),
    "llava": Family(lmms="llava_hf"),
    "llava_next": Family(lmms="llava_hf"),
    "llava_onevision": Family(lmms="llava_hf"),
    "mllama": Family(across="cross_attention_mask", lmms="llama_vision"),
    "paligemma": Family(reads_both_ways=True, one_array=True),
    "qwen2_5_vl": Family(lmms="qwen2_5_vl"),
    "qwen2_vl": Family(lmms="qwen2_vl"),
    "qwen3_vl": Family(lmms="qwen3_vl"),
    "udop": Family(joins="behind"),
}
PLAIN = Family()  # one without quirks


def of(config: Any) -> Family:
    """The family of a model, by its config; PLAIN where the table has no row."""
    return FAMILIES.get(getattr(config, "model_type", ""), PLAIN)


def of_processor(processor: Any) -> Family:
    """The family whose processor this is, as transformers pairs them: prompts are made without any config."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    names = {kind.__name__ for kind in type(processor).__mro__}
    found = (family for kind, family in FAMILIES.items() if PROCESSOR_MAPPING_NAMES.get(kind) in names)
    return next(found, PLAIN)


def reads_question(name: str) -> bool:
    """Whether linear `name` of a Q-Former reads queries and text: `_query` and cross-attention read queries alone."""
    return QFORMER in name and "_query" not in name and ".crossattention." not in name
