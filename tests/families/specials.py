"""What a type's pico model needs besides small sizes, and which types have none. Data, by type.

A key is a path in the config: "text_config.num_experts".
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from families.shrink import DROP, HEAD, INNER, WIDTH, shrunk
from ressa.errors import RessaError

Changes = dict[str, Any]


def below(path: str, changes: Changes) -> Changes:
    return {f"{path}.{name}": value for name, value in changes.items()}


def sub(model_type: str, **changes: Any) -> Changes:
    """The shrunken default of a part that the default of the whole leaves out."""
    return shrunk(CONFIG_MAPPING[model_type]().to_dict()) | {"model_type": model_type} | changes


def mrope(*sections: int) -> Changes:
    """How many of a head's rotated pairs turn with time, height and width."""
    return {"text_config.rope_parameters.mrope_section": list(sections)}


def codes(name: Any, count: int = 32) -> dict[str, int]:
    """Names of the words that stand for pieces of pictures."""
    return {"<image>": 10, **{name(number): 20 + number for number in range(count)}}


SAM = {"output_channels": WIDTH, "downsample_channels": [WIDTH, WIDTH], "global_attn_indexes": [1], "window_size": 2}
VQ = {"base_channels": 32, "channel_multiplier": [1, 1], "latent_channels": 32, "num_embeddings": 32}
VQ |= {"num_res_blocks": 1}
CROPS = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
FEW_TOKENS = {"mm_tokens_per_image": 4}
OMNI = {"vision_start_token_id": 200, "vision_end_token_id": 201, "audio_start_token_id": 202}
OMNI |= {"audio_end_token_id": 203}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SLIDING = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
SLIDING |= {"head_dim": HEAD, "qk_nope_head_dim": 8, "v_head_dim": HEAD, "qk_rope_head_dim": 8}
INDEXER = {"n_heads": 2, "kv_heads": 1, "head_dim": HEAD, "budget": 4, "compress_ratio": 2}

SPECIALS: dict[str, Changes] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "chameleon": {
        "vocabulary_map": codes(lambda n: f"IMGIMG{''.join(chr(65 + int(digit)) for digit in str(n))}Z"),
        **below("vq_config", VQ | {"embed_dim": 32, "resolution": 32, "attn_type": "none"}),
    },
    "cohere_compass": {"text_config.rope_parameters": {"full_attention": ROPE | {"mrope_section": [4, 2, 2]}}},
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
        **below("vision_config.sam_config", SAM),
    },
    "deepseek_vl_hybrid": below("high_res_vision_config", SAM),
    "dots3_note": {
        "text_config.num_key_value_heads": 4,
        "text_config.per_layer_config": {1: SLIDING},
        "vision_config.adapter_in_dim": WIDTH,
        "audio_config.adapter_input_size": WIDTH,
    },
    "emu3": {
        "vocabulary_map": codes(lambda n: f"<|visual token {n:06d}|>") | {"<|extra_200|>": 11},
        **below("vq_config", VQ | {"codebook_size": 32, "hidden_size": 32, "attn_resolutions": []}),
    },
    "ernie4_5_vl_moe": {"text_config.rope_parameters": ROPE | {"mrope_section": [3, 3, 2]}},
    "florence2": below(
        "vision_config",
        {
            "embed_dim": [16, 16, 32, 32],
            "num_heads": [2] * 4,
            "num_groups": [2] * 4,
            "depths": [1] * 4,
            "patch_size": [7, 3, 3, 3],
        },
    ),
    "gemma3": FEW_TOKENS,
    "gemma4": {"vision_config": sub("gemma4_vision", position_embedding_size=16, pooling_kernel_size=2)},
    "gemma4_unified": {
        "vision_config": sub("gemma4_unified_vision", mm_embed_dim=WIDTH, mm_posemb_size=16, output_proj_dims=WIDTH)
    },
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": INNER,
        "canvas_length": 8,
        "vision_config.position_embedding_size": 16,
        "vision_config.pooling_kernel_size": 2,
    },
    "glm46v": mrope(4, 2, 2),
    "glm4v": mrope(4, 2, 2),
    "glm4v_moe": mrope(2, 1, 1),
    "glm5_next": below(
        "text_config",
        {
            "num_key_value_heads": 4,
            "qk_rope_head_dim": 0,
            "qk_head_dim": DROP,
            "head_dim": 0,
            "index_kpool": 2,
            "index_topk": 4,
        },
    ),
    "glm_ocr": mrope(4, 2, 2),
    "glmga": mrope(4, 2, 2),
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0, 1, 0, 1],
        "downsample_rate": "1/2",
        **CROPS,
    },
    "hunyuan_vl": {"text_config.head_dim": HEAD, "vision_config.max_image_size": 64, **mrope(2, 2, 2, 2)},
    "inkling2": {"quantization_config": None},  # it says so itself: float8
    "janus": below("vq_config", VQ | {"embed_dim": 8}),
    "kimi_k25": below("text_config", {"num_key_value_heads": 4, "head_dim": 8, "first_k_dense_replace": 1}),
    "llama4": {"vision_config.intermediate_size": 4 * WIDTH},
    "llava_next": CROPS,
    "llava_next_video": CROPS,
    "llava_onevision": CROPS,
    "mistral4": {"num_key_value_heads": 4},
    "mistral_large4": {"text_config.num_key_value_heads": 4, "text_config.kv_source_layers": [0, 1]},
    "mllama": {
        "text_config.cross_attention_layers": [1],
        **below(
            "vision_config",
            {
                "num_global_layers": 1,
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 3 * WIDTH,
                "max_num_tiles": 2,
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            },
        ),
    },
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0], "vision_config.num_position_embeddings": DROP},
    "muse_glimmer": {"out_hidden_size": 4 * WIDTH},
    "muse_spark": {
        "out_hidden_size": 4 * WIDTH,
        **below(
            "audio_config",
            {"num_hidden_layers": 2, "patch_sizes": [2, 2], "hidden_sizes": [32, WIDTH], "depths": [1, 1]},
        ),
    },
    "nemotron_h_omni": {"text_config.n_groups": 2},
    "paddleocr_vl": mrope(4, 2, 2),
    "pp_formulanet": below(
        "vision_config",
        SAM | {f"post_conv_{name}_channels": WIDTH for name in ("in", "mid", "out")},
    ),
    "qwen2_5_omni_thinker": OMNI | mrope(4, 2, 2),
    "qwen2_5_vl": mrope(4, 2, 2),
    "qwen2_vl": mrope(4, 2, 2),
    "qwen3_omni_moe_thinker": OMNI | {"audio_config.downsample_hidden_size": 8},
    "qwen4_exp": below("text_config", {f"indexer_{name}": value for name, value in INDEXER.items()}),
    "shieldgemma2": FEW_TOKENS,
    "step3p7": {"vision_config.mlp_ratio": 2.0, "text_config.sliding_window": 8},
    "t5gemma2": below("encoder", FEW_TOKENS),
    "udop": {"decoder_start_token_id": 0},
    "unlimited_ocr": below("vision_config.sam_config", SAM) | {"text_config.num_key_value_heads": 4},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "vision-encoder-decoder": {"decoder_start_token_id": 1, "pad_token_id": 0},
}

NEEDS = {"fast_vlm": "timm", "gemma3n": "timm", "perception_lm": "timm", "inkling_mm_model": "scipy"}

# Types that cannot go all the way: (how far they come, what refuses them, a piece of what it says, why that is so).
CANNOT: dict[str, tuple[str, type[Exception], str, str]] = {
    name: ("", ImportError, library, f"transformers needs {library} for it, which ressa does not depend on")
    for name, library in NEEDS.items()
}
CANNOT |= {
    "diffusion_gemma": (
        "",
        AttributeError,
        "get_image_features",
        "not yet: it has no get_image_features, so the tests make no inputs for it; it writes by diffusion",
    ),
    "evolla": (
        "",
        ValueError,
        "Unrecognized configuration class",
        "reads proteins, not pictures, and AutoModelForImageTextToText does not take its config",
    ),
    "pi0": (
        "inspect",
        RessaError,
        "key-value cache",
        "moves a robot: its answers are no text, and its blocks hand on a key-value cache",
    ),
    "shieldgemma2": (
        "",
        AssertionError,
        "not in the folder",
        "transformers saves it under names that it does not load again",
    ),
}
