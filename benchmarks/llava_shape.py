"""A LLaVA of 60 million parameters made from nothing, its calibration samples, and what pruning it must compute.

Seeded, so that every process and every library is given the same model and the same tensors. Words are drawn by Zipf's
law and pictures are smooth: the inputs of layers are then correlated, as they are in trained models.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

WORDS, IMAGE_TOKEN, PIXELS, PATCH = 512, 1, 64, 8
IMAGE_TOKENS = (PIXELS // PATCH) ** 2
TOKENS = 96  # of one sample: 64 of its picture, 32 words


def config(language_blocks: int = 12, vision_blocks: int = 6) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=language_blocks,
        num_attention_heads=9,
        max_position_embeddings=512,
        initializer_range=0.04,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    vision = SiglipVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=vision_blocks,
        num_attention_heads=6,
        image_size=PIXELS,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def build(shape: LlavaConfig | None = None) -> LlavaForConditionalGeneration:
    """The model in float32, on the CPU, in eval mode."""
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(shape or config()).float().eval()


def save(folder: Path, shape: LlavaConfig | None = None) -> None:
    """The model as an ordinary transformers folder, with a tokenizer of numbered words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    build(shape).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w2", pad_token="w0").save_pretrained(folder)


def samples(n: int, seed: int) -> dict[str, Tensor]:
    """`n` samples of 96 tokens: a picture and 32 words, no padding."""
    rng = torch.Generator().manual_seed(seed)
    zipf = 1 / torch.arange(1, WORDS - 1, dtype=torch.float64)
    words = 2 + torch.multinomial(zipf.expand(n, -1), TOKENS - IMAGE_TOKENS, replacement=True, generator=rng)
    ids = torch.cat([torch.full((n, IMAGE_TOKENS), IMAGE_TOKEN), words], dim=1)
    coarse = torch.randn(n, 3, 6, 6, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, PIXELS, mode="bicubic")
    pixels = smooth + 0.1 * torch.randn(n, 3, PIXELS, PIXELS, generator=rng)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def batches(tensors: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    parts = {name: tensor.split(size) for name, tensor in tensors.items()}
    return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]


def floor_flop(shape: LlavaConfig, n: int, iterations: int = 0, propagate: str = "sequential") -> dict[str, float]:
    """What SparseGPT must compute on `n` samples, in floating point operations, by kind.

    Forwards: each block as it was, to gather, and if sequential pruned too, to go on (the last need not). Grams: one
    for each input that several linears share, as an ordinary product (a symmetric one could be had for half). Solves:
    a Cholesky factor and its inverse for each Gram, and the spreading of errors over the columns still to come, which
    costs half a product of weights and Gram. ADMM has `iterations` whole ones instead.
    """
    text, vision = shape.text_config, shape.vision_config
    again = propagate != "dense"
    sides = (
        (n * TOKENS, TOKENS, text, 3, text.num_hidden_layers + again * (text.num_hidden_layers - 1)),
        (n * IMAGE_TOKENS, IMAGE_TOKENS, vision, 2, (1 + again) * vision.num_hidden_layers),
    )
    flop = dict.fromkeys(("forwards", "Grams", "solves"), 0.0)
    for tokens, length, side, mlps, passes in sides:
        h, m, blocks = side.hidden_size, side.intermediate_size, side.num_hidden_layers
        flop["forwards"] += passes * (2 * tokens * (4 * h * h + mlps * h * m) + 4 * tokens * length * h)
        flop["Grams"] += blocks * 2 * tokens * (3 * h * h + m * m)
        spread = (4 * h + (mlps - 1) * m) * h * h + h * m * m
        flop["solves"] += blocks * (2 / 3 * (3 * h**3 + m**3) + spread * (2 * iterations or 1))
    return flop


def gflops(size: int = 2048, seconds: float = 1.0) -> float:
    """What a float32 matrix product reaches on this machine now: the best of those that fit into `seconds`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9
