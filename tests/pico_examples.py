"""Pico models of the families in `examples/`, with their processors, beside those of `pico.py`.

Each builder writes into the folder it is given and returns it. Tokenizers are trained on the fly, image processors are
the PIL ones; processors that also read videos are saved without their video part, which needs torchvision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from pico import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    HEADS,
    IMAGE_SIZE,
    INTERMEDIATE,
    LAYERS,
    PAD,
    PATCH_SIZE,
    STD,
    WIDTH,
    _save,
    tokenizer,
)

TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS // 2,
    "max_position_embeddings": 512,
    "initializer_range": STD,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "initializer_range": STD,
}
SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2


def llava_onevision(folder: Path) -> Path:
    """LLaVA-OneVision: tiles of a picture, SigLIP, Qwen 2."""
    pieces = tokenizer(extra_special_tokens={"image_token": "<image>", "video_token": "<video>"})
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False},
        text_config={"model_type": "qwen2", "vocab_size": len(pieces), **TEXT},
        image_token_index=pieces.image_token_id,
        video_token_index=pieces.video_token_id,
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE], [IMAGE_SIZE, 2 * IMAGE_SIZE]],
        tie_word_embeddings=False,
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=config.image_grid_pinpoints),
        pieces,
        num_image_tokens=IMAGE_TOKENS,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    return _save(folder, LlavaOnevisionForConditionalGeneration, config, processor)


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: pictures of any size, windows, a merger, mRoPE."""
    vision = {"depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": INTERMEDIATE, "num_heads": HEADS}
    vision |= {"out_hidden_size": WIDTH, "fullatt_block_indexes": [1], "window_size": 28, "patch_size": 7}
    return _qwen(folder, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, vision, [1, 1, 2])


def qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: deep-stacked vision features, norms of queries and keys."""
    vision = {"depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": INTERMEDIATE, "num_heads": HEADS}
    vision |= {
        "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0],
        "patch_size": 7,
        "num_position_embeddings": 64,
    }
    return _qwen(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, vision, [2, 1, 1])


def _qwen(folder: Path, config_class: Any, model_class: Any, processor_class: Any, vision: Any, mrope: Any) -> Path:
    names = {name: f"<|{name.removesuffix('_token')}|>" for name in ("vision_start_token", "vision_end_token")}
    names |= {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    pieces = tokenizer(extra_special_tokens=names)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": mrope}
    config = config_class(
        vision_config=vision,
        text_config={"vocab_size": len(pieces), "head_dim": WIDTH // HEADS, "rope_parameters": rope, **TEXT},
        **{f"{name}_id": pieces.convert_tokens_to_ids(token) for name, token in names.items()},
        tie_word_embeddings=False,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=7, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 42 * 42}
    )
    template = CHAT_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    return _save(folder, model_class, config, processor_class(images, pieces, chat_template=template))


def smolvlm(folder: Path) -> Path:
    """SmolVLM 2: pixel shuffle, a picture between tokens of its own."""
    names = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "video_token": "<video>"}
    names |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    pieces = tokenizer(extra_special_tokens=names)
    config = SmolVLMConfig(
        vision_config=TOWER,
        text_config={"model_type": "llama", "vocab_size": len(pieces), **TEXT},
        image_token_id=pieces.image_token_id,
        pad_token_id=PAD,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}, do_image_splitting=False
    )
    processor = SmolVLMProcessor(images, pieces, None, image_seq_len=IMAGE_TOKENS // 4, chat_template=CHAT_TEMPLATE)
    return _save(folder, SmolVLMForConditionalGeneration, config, processor)


def paligemma2(folder: Path) -> Path:
    """PaliGemma 2: SigLIP, Gemma 2; no chat template, as published."""
    pieces = tokenizer(extra_special_tokens={"image_token": "<image>"})
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = IMAGE_TOKENS
    processor = PaliGemmaProcessor(images, pieces)
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False},
        text_config={"model_type": "gemma2", "vocab_size": len(pieces), "head_dim": WIDTH // HEADS, **TEXT},
        image_token_index=pieces.image_token_id,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    return _save(folder, PaliGemmaForConditionalGeneration, config, processor)


def gemma3(folder: Path) -> Path:
    """Gemma 3: sliding windows, image tokens that see one another."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    pieces = tokenizer(extra_special_tokens=names)
    config = Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False},
        text_config={"vocab_size": len(pieces), "head_dim": WIDTH // HEADS, "sliding_window": 16, **TEXT},
        image_token_index=pieces.image_token_id,
        boi_token_index=pieces.boi_token_id,
        eoi_token_index=pieces.eoi_token_id,
        mm_tokens_per_image=1,
        eos_token_id=EOS,
    )
    template = CHAT_TEMPLATE.replace("<image>\n", "<start_of_image>")
    processor = Gemma3Processor(Gemma3ImageProcessorPil(size=SIZE), pieces, chat_template=template, image_seq_length=1)
    return _save(folder, Gemma3ForConditionalGeneration, config, processor)


def internvl3(folder: Path) -> Path:
    """InternVL 3: pixel shuffle, tiles, Qwen 2."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    pieces = tokenizer(extra_special_tokens={**names, "video_token": "<video>"})
    config = InternVLConfig(
        vision_config={**TOWER, "image_size": [IMAGE_SIZE] * 2, "patch_size": [PATCH_SIZE] * 2},
        text_config={"model_type": "qwen2", "vocab_size": len(pieces), **TEXT},
        image_token_id=pieces.context_image_token_id,
        image_seq_length=IMAGE_TOKENS // 4,
        tie_word_embeddings=False,
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessorPil(size=SIZE),
        pieces,
        image_seq_length=IMAGE_TOKENS // 4,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<IMG_CONTEXT>"),
    )
    return _save(folder, InternVLForConditionalGeneration, config, processor)


def florence2(folder: Path) -> Path:
    """Florence-2: DaViT with attention over channels, BART; no chat template, as published."""
    pieces = tokenizer(extra_special_tokens={"image_token": "<image>"})
    vision = {"depths": [1, 1], "embed_dim": [16, WIDTH], "num_heads": [2, 4], "num_groups": [2, 4], "window_size": 2}
    vision |= {"patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True]}
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", INTERMEDIATE))
    }
    text = {"d_model": WIDTH, "vocab_size": len(pieces), "max_position_embeddings": 512, "init_std": STD, **sides}
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": EOS}
    config = Florence2Config(
        vision_config={**vision, "projection_dim": WIDTH, "max_position_embeddings": 16},
        text_config={"model_type": "bart", **text, **ids, "forced_eos_token_id": EOS},
        image_token_id=pieces.image_token_id,
        is_encoder_decoder=True,
        **ids,
    )
    images = CLIPImageProcessorPil(size=SIZE, crop_size=SIZE, resample=3)
    images.image_seq_length = (IMAGE_SIZE // 8) ** 2 + 1  # its patches and their mean
    return _save(folder, Florence2ForConditionalGeneration, config, Florence2Processor(images, pieces))


def mllama(folder: Path) -> Path:
    """Llama 3.2 Vision: some of its layers attend across to the picture."""
    pieces = tokenizer(extra_special_tokens={"image_token": "<|image|>"})
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": INTERMEDIATE,
        "attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
    }
    vision |= {"num_global_layers": 1, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "max_num_tiles": 2}
    vision |= {
        "intermediate_layers_indices": [0],
        "vision_output_dim": 2 * WIDTH,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    config = MllamaConfig(
        vision_config=vision,
        text_config={"vocab_size": len(pieces) - 1, "cross_attention_layers": [1], **TEXT, "num_hidden_layers": 3},
        image_token_index=pieces.image_token_id,
    )
    processor = MllamaProcessor(
        MllamaImageProcessorPil(size=SIZE, max_image_tiles=2),
        pieces,
        chat_template=CHAT_TEMPLATE.replace("<image>\n", "<|image|>"),
    )
    return _save(folder, MllamaForConditionalGeneration, config, processor)


BUILDERS = {
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm2": smolvlm,
    "paligemma2": paligemma2,
    "gemma3": gemma3,
    "internvl3": internvl3,
    "florence2": florence2,
    "mllama": mllama,
}
