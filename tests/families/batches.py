"""Small inputs for any image-text-to-text model: pictures as its forward wants them, text with as many image tokens.

How many image tokens a picture takes is not written down anywhere here: the model's own `get_image_features` is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TEXT = 100  # ids from here on are words
Inputs = dict[str, Any]


def batches(model: Any, model_type: str) -> list[Inputs]:
    """Two batches, of two records and of one, padded on the right, with labels on the last tokens."""
    return [batch(model, model_type, count, seed) for seed, count in enumerate((2, 1))]


def batch(model: Any, model_type: str, count: int, seed: int) -> Inputs:
    torch.manual_seed(seed)
    if special := WHOLE.get(model_type):
        return special(model, count)
    pictures = PICTURES.get(model_type, _pictures)(model, count)
    tokens = TOKENS[model_type](model, pictures, count) if model_type in TOKENS else _tokens(model, pictures, count)
    return pictures | text(model, tokens)


def accepts(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


# ---- pictures --------------------------------------------------------------------------------------------------------


def _pictures(model: Any, count: int) -> Inputs:
    names = accepts(model)
    if "image_grid_thw" in names:
        return _grid(model, count)
    if "image_sizes" in names and hasattr(model.config, "image_grid_pinpoints"):
        return _crops(model, count)
    if "image_sizes" in names:
        size = _vision(model).image_size
        size = size[0] if isinstance(size, list | tuple) else size
        return {"pixel_values": torch.randn(count, 3, size, size), "image_sizes": torch.tensor([[size, size]] * count)}
    return _square(model, count)


def _vision(model: Any) -> Any:
    return getattr(model.config, "vision_config", model.config)


def _square(model: Any, count: int) -> Inputs:
    size = getattr(_vision(model), "image_size", 32)
    size = list(size) if isinstance(size, list | tuple) else [size, size]
    return {"pixel_values": torch.randn(count, 3, *size)}


def _grid(model: Any, count: int) -> Inputs:
    """Patches in a row, pictures of different sizes behind one another, as Qwen2-VL takes them."""
    vision = _vision(model)
    merge = _one(getattr(vision, "spatial_merge_size", None) or getattr(vision, "merge_kernel_size", None) or 2)
    grids = [[1, 2 * merge, (2 + number) * merge] for number in range(count)]
    time = _one(getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1)
    width = 3 * time * _one(vision.patch_size) ** 2
    patches = sum(t * h * w for t, h, w in grids)
    return {"pixel_values": torch.randn(patches, width), "image_grid_thw": torch.tensor(grids)}


def _one(size: Any) -> int:
    return size[0] if isinstance(size, list | tuple) else size


def _crops(model: Any, count: int) -> Inputs:
    """A picture as a whole and in tiles, as LLaVA-NeXT takes it; the second record's picture has another shape."""
    size = _vision(model).image_size
    shapes = [(size, 2 * size), (2 * size, size)][:count]
    return {"pixel_values": torch.randn(count, 3, 3, size, size), "image_sizes": torch.tensor(shapes)}


# ---- text ------------------------------------------------------------------------------------------------------------


def _tokens(model: Any, pictures: Inputs, count: int) -> list[int]:
    asked = model if hasattr(model, "get_image_features") else model.base_model
    taken = set(inspect.signature(asked.get_image_features).parameters)
    open_ended = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(asked.get_image_features).parameters.values())
    with torch.no_grad():
        found = asked.get_image_features(**{k: v for k, v in pictures.items() if open_ended or k in taken})
    features = getattr(found, "pooler_output", found)
    if features is None and hasattr(found, "deepstack_features"):
        features = found.deepstack_features[0][1]
    features = found.last_hidden_state if features is None else features
    if isinstance(features, Tensor) and features.ndim == 3 and len(features) == count:
        return [features.shape[1]] * count
    if isinstance(features, list | tuple) and len(features) == count:
        return [one.shape[:-1].numel() for one in features]
    rows = features.shape[:-1].numel() if isinstance(features, Tensor) else sum(f.shape[:-1].numel() for f in features)
    return [rows // count] * count


def image_token(config: Any) -> int:
    if "<image>" in (words := getattr(config, "vocabulary_map", None) or {}):
        return words["<image>"]
    for name in ("image_token_id", "image_token_index", "video_token_index"):
        if isinstance(found := getattr(config, name, None), int):
            return found
    raise AttributeError(f"{type(config).__name__} names no image token")


def text(model: Any, tokens: list[int], image: int | None = None) -> Inputs:
    """Rows of a start token, words, the picture's tokens, words; the rows of a batch differ in length."""
    config, names = model.config, accepts(model)
    image = image if image is not None or not any(tokens) else image_token(config)
    rows = []
    for number, length in enumerate(tokens):
        words = torch.randint(TEXT, TEXT + 40, (7 + number,)).tolist()
        rows.append([1, *words[:2], *[image] * length, *words[2:]])
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    inputs: Inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "is_encoder_decoder", False):
        inputs["labels"] = torch.randint(TEXT, TEXT + 40, (len(rows), 5))
    else:
        labels = ids.clone()
        labels[:, : -5 - len(rows)] = -100
        inputs["labels"] = labels.masked_fill(mask == 0, -100)
    for name in names & {"mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids"}:
        inputs[name] = (ids == image).long()
    return {key: value for key, value in inputs.items() if key in names}


def _size(model: Any) -> int:
    return _one(getattr(_vision(model), "image_size", None) or 32)


def _several(model: Any, count: int) -> Inputs:
    """One picture per record, in a dimension of its own."""
    size = _size(model)
    return {"pixel_values": torch.randn(count, 1, 3, size, size)}


def _naflex(model: Any, count: int) -> Inputs:
    """SigLIP 2: patches of pictures of different shapes, padded."""
    shapes = torch.tensor([[4, 4], [2, 4]][:count])
    lengths = shapes.prod(1)
    mask = torch.arange(16)[None] < lengths[:, None]
    width = 3 * _one(_vision(model).patch_size) ** 2
    return {
        "pixel_values": torch.randn(count, 16, width),
        "spatial_shapes": shapes,
        "pixel_attention_mask": mask.long(),
    }


def _packed(model: Any, count: int) -> Inputs:
    """MiniCPM-V 4.6: all patches behind one another, each a strip of its pixels."""
    patch, sizes = _one(_vision(model).patch_size), torch.tensor([[4, 4], [4, 8]][:count])
    return {"pixel_values": torch.randn(1, 3, patch, patch * int(sizes.prod(1).sum())), "target_sizes": sizes}


def _positions(model: Any, count: int) -> Inputs:
    """Gemma 4: patches in a row with their places."""
    places = torch.tensor([[x, y] for y in range(4) for x in range(4)]).repeat(count, 1, 1)
    vision = _vision(model)
    patch = getattr(vision, "model_patch_size", None) or vision.patch_size
    return {"pixel_values": torch.rand(count, 16, 3 * patch**2), "image_position_ids": places}


def _patched(rows: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, int], Inputs]:
    """As `_grid`, with every patch laid out by `rows`."""

    def make(model: Any, count: int) -> Inputs:
        inputs = _grid(model, count)
        return inputs | {"pixel_values": rows(_one(_vision(model).patch_size), inputs["pixel_values"])}

    return make


def _inkling(model: Any, count: int) -> Inputs:
    inputs, vision = _grid(model, count), _vision(model)
    side = vision.patch_size * vision.spatial_merge_size
    blocks = int(inputs["image_grid_thw"].prod(1).sum())
    return inputs | {"pixel_values": torch.randn(blocks, side, side, 3)}


def _nemotron(model: Any, count: int) -> Inputs:
    inputs = _grid(model, count)
    return {"pixel_values": inputs["pixel_values"], "image_grid_hw": inputs["image_grid_thw"][:, 1:]}


def _molmo(model: Any, count: int) -> Inputs:
    """Crops of 16 patches of which the tokens pool 4 each."""
    width = 3 * _vision(model).patch_size ** 2
    pool = torch.arange(16).reshape(4, 4)
    pooling = torch.cat([pool + 16 * number for number in range(count)])
    grids = torch.tensor([[2, 2, 0, 0]] * count)
    crops = torch.ones(count, dtype=torch.long)
    return {
        "pixel_values": torch.randn(count, 16, width),
        "image_token_pooling": pooling,
        "image_grids": grids,
        "image_num_crops": crops,
    }


def _mllama(model: Any, count: int) -> Inputs:
    size = _size(model)
    tiles = torch.tensor([[[1, 1]], [[1, 0]]])[:count]
    return {
        "pixel_values": torch.randn(count, 1, 2, 3, size, size),
        "aspect_ratio_ids": torch.tensor([[2], [1]])[:count],
        "aspect_ratio_mask": tiles,
    }


def _none(model: Any, pictures: Inputs, count: int) -> list[int]:
    return [0] * count


def _fixed(tokens: int) -> Callable[[Any, Inputs, int], list[int]]:
    return lambda model, pictures, count: [tokens] * count


def _with(extra: Callable[[Any, int], Inputs], base: Callable[[Any, int], Inputs] = _square) -> Callable[..., Inputs]:
    return lambda model, count: base(model, count) | extra(model, count)


def _frames(model: Any, count: int) -> Inputs:
    size = _size(model)
    return {"pixel_values": torch.randn(count, 2, 3, size, size)}


def _labels(count: int) -> Tensor:
    return torch.randint(TEXT, TEXT + 40, (count, 5))


def _pix2struct(model: Any, count: int) -> Inputs:
    patches = torch.randn(count, 6, 2 + _vision(model).patch_embed_hidden_size)
    patches[..., :2] = torch.tensor([[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]])
    mask = torch.ones(count, 6)
    mask[1:, 4:] = 0
    return {"flattened_patches": patches, "attention_mask": mask, "labels": _labels(count)}


def _flattened(model: Any, count: int) -> Inputs:
    patches = torch.randn(count, 6, 2 + _vision(model).patch_embed_hidden_size)
    patches[..., :2] = torch.tensor([[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]])
    size = torch.tensor([[2], [3]])
    return {"flattened_patches": patches, "height": size[:1].repeat(count, 1), "width": size[1:].repeat(count, 1)}


def _kosmos(pictures: Callable[[Any, int], Inputs]) -> Callable[[Any, int], Inputs]:
    def make(model: Any, count: int) -> Inputs:
        tokens = model.config.latent_query_num
        inputs = text(model, [tokens] * count, image=9)
        return pictures(model, count) | inputs | {"image_embeds_position_mask": (inputs["input_ids"] == 9).long()}

    return make


def _read(model: Any, count: int) -> Inputs:
    """Picture in, text out."""
    labels = _labels(count)
    return _square(model, count) | {
        "labels": labels,
        "decoder_input_ids": torch.cat([torch.ones_like(labels[:, :1]), labels[:, :-1]], 1),
    }


def _udop(model: Any, count: int) -> Inputs:
    inputs = text(model, [0] * count)
    boxes = torch.rand(*inputs["input_ids"].shape, 2).sort(-1).values / 2
    return _square(model, count) | inputs | {"bbox": torch.cat([boxes, boxes + 0.5], -1)}


def _idefics(model: Any, count: int) -> Inputs:
    inputs = text(model, [0] * count)
    return _several(model, count) | inputs | {"image_attention_mask": inputs["attention_mask"][..., None]}


def _words(model: Any, count: int) -> Inputs:
    return text(model, [0] * count)


def _instruct(model: Any, count: int) -> Inputs:
    ids = torch.randint(TEXT, TEXT + 40, (count, 4))
    mask = torch.ones_like(ids)
    mask[1:, 3:] = 0
    return {"qformer_input_ids": ids, "qformer_attention_mask": mask}


def _mllama_whole(model: Any, count: int) -> Inputs:
    inputs = text(model, [1] * count, image=9)
    cross = inputs["attention_mask"][:, :, None, None] * _mllama(model, count)["aspect_ratio_mask"][:, None]
    return _mllama(model, count) | inputs | {"cross_attention_mask": cross}


def _pi0(model: Any, count: int) -> Inputs:
    """A state of a robot, one camera's picture, an instruction."""
    config, vlm = model.config, model.config.vlm_config
    inputs = text(model, [16] * count, image=vlm.image_token_id)
    return {
        **{key: inputs[key] for key in ("input_ids", "attention_mask")},
        "pixel_values": torch.randn(count, 1, 3, 32, 32),
        "pixel_attention_mask": torch.ones(count, 1).bool(),
        "state": torch.randn(count, config.max_state_dim),
        "noise": torch.randn(count, config.chunk_size, config.max_action_dim),
        "timestep": torch.rand(count),
    }


def _video_llava(model: Any, count: int) -> Inputs:
    """A picture and a video in each record: there is a tower for either."""
    inputs = text(model, [16] * count)
    video = torch.full((count, 8 * 17), model.config.video_token_index)
    ones = torch.ones_like(video)
    return {
        "pixel_values_images": torch.randn(count, 3, 32, 32),
        "pixel_values_videos": torch.randn(count, 8, 3, 32, 32),
        "input_ids": torch.cat([video, inputs["input_ids"]], 1),
        "attention_mask": torch.cat([ones, inputs["attention_mask"]], 1),
        "labels": torch.cat([-100 * ones, inputs["labels"]], 1),
    }


PICTURES: dict[str, Callable[[Any, int], Inputs]] = {
    "llava": _square,
    "idefics2": _several,
    "idefics3": _several,
    "smolvlm": _several,
    "granite_docling": _with(lambda model, count: {"pixel_attention_mask": torch.ones(count, 1).bool()}, _several),
    "deepseek_vl_hybrid": _with(lambda model, count: {"high_res_pixel_values": torch.randn(count, 3, 32, 32)}, _square),
    "emu3": lambda model, count: {
        "pixel_values": torch.randn(count, 3, 8, 8),
        "image_sizes": torch.tensor([[8, 8]] * count),
    },
    "fuyu": lambda model, count: {"pixel_values": torch.randn(count, 6, 3 * model.config.patch_size**2)},
    "gemma4": _positions,
    "gemma4_unified": _positions,
    "diffusion_gemma": _positions,
    "inkling2": _inkling,
    "instructblip": _with(_instruct),
    "instructblipvideo": _with(_instruct, _frames),
    "kimi_k25": _patched(lambda patch, x: x.reshape(-1, 3, patch, patch)),
    "paddleocr_vl": _patched(lambda patch, x: x.reshape(-1, 3, patch, patch)),
    "lfm2_vl": _naflex,
    "minicpm_ocr": _packed,
    "minicpmv4_6": _packed,
    "minicpmv4_7": _packed,
    "molmo2": _molmo,
    "nemotron_h_omni": _nemotron,
    "video_llama_3": _with(lambda model, count: {"image_merge_sizes": torch.tensor([2] * count)}, _grid),
}
TOKENS: dict[str, Callable[[Any, Inputs, int], list[int]]] = {
    "blip": _none,
    "git": _none,
    "instructblip": _fixed(4),
    "instructblipvideo": _fixed(8),
    "fuyu": _fixed(6),
}
WHOLE: dict[str, Callable[[Any, int], Inputs]] = {
    "idefics": _idefics,
    "kosmos-2": _kosmos(_square),
    "kosmos-2.5": _kosmos(_flattened),
    "mistral4": _words,
    "mllama": _mllama_whole,
    "pi0": _pi0,
    "pix2struct": _pix2struct,
    "pp_formulanet": _read,
    "udop": _udop,
    "video_llava": _video_llava,
    "vision-encoder-decoder": _read,
}
