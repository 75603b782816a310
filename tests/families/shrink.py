"""Pico configs of every image-text-to-text type: the default config, with every size in its tree made small.

A size is known by its name. All widths are the same, so that what one half hands to the other fits; what a type needs
besides stands in `types.py`.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

WIDTH, INNER, HEADS, HEAD, LAYERS, VOCAB = 64, 96, 4, 16, 2, 160
IMAGE, PATCH = 32, 8
FIRST_SPECIAL = 5  # ids below are pad, bos, eos, unknown, decoder start

SIZES: dict[str, Any] = {}
for _names, _size in (
    (
        "hidden_size d_model embed_dim out_hidden_size projection_dim encoder_hidden_size word_embed_proj_dim "
        "text_hidden_size projector_hidden_size image_text_hidden_size patch_embed_hidden_size decoder_hidden_size "
        "vision_output_dim projector_input_dim projector_output_dim output_dim vision_hidden_size moe_hidden_size "
        "image_token_embed_dim adapter_out_dim projection_hidden_size projection_hidden_dim conv_output_size "
        "pooler_output_size aligner_hidden_size hidden_dim input_hidden_size dim",
        WIDTH,
    ),
    (
        "intermediate_size ffn_dim mlp_dim d_ff moe_intermediate_size shared_expert_intermediate_size "
        "shared_experts_intermediate_size moe_shared_expert_intermediate_size intermediate_size_mlp encoder_ffn_dim "
        "decoder_ffn_dim dense_intermediate_size shared_intermediate_size share_expert_dim alignment_intermediate_size "
        "projection_intermediate_size",
        INNER,
    ),
    (
        "num_attention_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
        "swa_num_attention_heads num_sliding_attention_heads linear_num_heads resampler_n_heads resampler_heads "
        "conf_num_attention_heads index_n_heads linear_num_value_heads mamba_num_heads num_head",
        HEADS,
    ),
    ("num_key_value_heads swa_num_key_value_heads linear_num_key_heads", HEADS // 2),
    (
        "head_dim d_kv linear_key_head_dim linear_value_head_dim linear_head_dim resampler_head_dim index_head_dim "
        "swa_head_dim qk_head_dim v_head_dim mamba_head_dim resampler_dim_head global_head_dim attention_head_dim",
        HEAD,
    ),
    ("qk_nope_head_dim qk_rope_head_dim", HEAD // 2),
    (
        "num_hidden_layers depth encoder_layers decoder_layers num_layers layers n_layers num_decoder_layers "
        "conf_num_hidden_layers resampler_depth",
        LAYERS,
    ),
    ("num_experts num_local_experts n_routed_experts moe_num_experts", 4),
    ("num_experts_per_tok moe_topk moe_k", 2),
    ("n_shared_experts moe_num_shared_experts n_group topk_group", 1),
    ("vocab_size vocab_size_per_layer_input unpadded_vocab_size", VOCAB),
    ("kv_lora_rank q_lora_rank laurel_rank hc_lowrank", 16),
    ("image_size", IMAGE),
    ("patch_size", PATCH),
    ("max_position_embeddings", 512),
    ("resampler_n_latents resampler_num_latents num_query_tokens latent_query_num", 4),
    ("sliding_window sliding_window_size attention_chunk_size", 8),
    ("hidden_size_per_layer_input", 16),
):
    SIZES |= dict.fromkeys(_names.split(), _size)

GONE = {"transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path", "auto_map", "id2label"}
GONE |= {"label2id", "quantization_config"}


def pico_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The shrunken config of a type; `changes` are set in its tree afterwards, as {"text_config.num_experts": 2}."""
    default = CONFIG_MAPPING[model_type]()
    tree = shrunk(default.to_dict())
    for path, value in changes.items():
        *above, last = path.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        if value is DROP:
            node.pop(last, None)
        else:
            node[last] = value
    _number_specials(tree)
    return type(default).from_dict(tree)


DROP = object()


def shrunk(tree: dict[str, Any]) -> dict[str, Any]:
    tree = _fewer_layers(tree)
    small: dict[str, Any] = {}
    for name, value in tree.items():
        if name in GONE:
            continue
        if isinstance(value, dict):
            small[name] = shrunk(value)
        elif name == "mrope_section":
            small[name] = [HEAD // 4, HEAD // 8, HEAD // 8]
        elif name in SIZES:
            small[name] = _size(value, SIZES[name])
        else:
            small[name] = value
    return small


def _size(value: Any, size: int) -> Any:
    if isinstance(value, list | tuple):
        return [_size(one, size) for one in value]
    if isinstance(value, _Fixed):
        return int(value)
    return size if isinstance(value, int) and not isinstance(value, bool) and value > 0 else value


def _fewer_layers(tree: dict[str, Any]) -> dict[str, Any]:
    """The first layer of each kind that a list tells of, at least two; every list with an entry per layer is cut so."""
    count = tree.get("num_hidden_layers")
    lists = {k: v for k, v in tree.items() if isinstance(v, list) and len(v) == count}
    if not lists:
        return tree
    told = [v for v in lists.values() if all(isinstance(one, str) for one in v)]
    picked = sorted({v.index(kind) for v in told for kind in v})
    picked += [layer for layer in range(count) if layer not in picked][: max(LAYERS - len(picked), 0)]
    cut = {name: [value[layer] for layer in picked] for name, value in lists.items()}
    per_layer = tree.get("per_layer_config")
    if per_layer:
        cut["per_layer_config"] = {
            new: per_layer[key] for new, old in enumerate(picked) for key in (old, str(old)) if key in per_layer
        }
    return {**tree, **cut, "num_hidden_layers": _Fixed(len(picked))}


class _Fixed(int):
    """A number that is as it is to be."""


def _number_specials(tree: dict[str, Any]) -> None:
    """Every special token gets an id within the small vocabulary, the same wherever it is named."""
    fixed = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    fixed |= {"sep_token_id": 2, "forced_eos_token_id": 2, "_pad_token_id": 0, "forced_bos_token_id": 1}
    ids: dict[str, int] = {}

    def visit(node: dict[str, Any]) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                visit(value)
            elif not isinstance(name, str):
                continue
            elif name in fixed and isinstance(value, int | list):
                node[name] = fixed[name]
            elif value is None and name in ("image_token_id", "image_token_index", "video_token_index"):
                node[name] = ids.setdefault(name.partition("_")[0], FIRST_SPECIAL + len(ids))
            elif name.endswith(("_token_id", "_token_index", "_id")) and type(value) is int and value >= VOCAB:
                kind = name.removesuffix("_id").removesuffix("_index").removesuffix("_token")
                node[name] = ids.setdefault(kind, FIRST_SPECIAL + len(ids))
            elif name.endswith("_token_ids") and isinstance(value, list):
                node[name] = [ids.setdefault(f"{name}{at}", FIRST_SPECIAL + len(ids)) for at in range(len(value))]

    visit(tree)
