"""A LLaVA of the shape of LLaVA-1.5-7B, random, written to disk shard by shard, with records to calibrate on.

The config is the published one (tests/configs/llava-1.5-7b-hf.json); weights are drawn from N(0, 0.02) in bfloat16, so
only shapes, file names and sizes are those of the trained model. `blocks` cuts both towers to fewer blocks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

CONFIG = Path(__file__).parents[1] / "tests" / "configs" / "llava-1.5-7b-hf.json"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% elif part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def write(folder: Path, *, vision: int | None = None, language: int | None = None, shard: str = "2GB") -> Path:
    """The model, its processor and index; `vision` and `language` are numbers of blocks, None for all of them."""
    config = AutoConfig.for_model(**json.loads(CONFIG.read_text(encoding="utf-8")))
    config.dtype = torch.bfloat16
    config.vision_config.num_hidden_layers = vision or config.vision_config.num_hidden_layers
    config.text_config.num_hidden_layers = language or config.text_config.num_hidden_layers
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, state_dict={})
    _processor(config).save_pretrained(folder)
    state = revert_weight_conversion(model, {name: tensor.detach() for name, tensor in model.state_dict().items()})
    split = split_torch_state_dict_into_shards(state, max_shard_size=shard)
    generator = torch.Generator().manual_seed(0)
    for file, names in split.filename_to_tensors.items():
        save_file({name: _drawn(state[name], generator) for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    if split.is_sharded:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def _drawn(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if like.ndim < 2:
        return torch.ones(like.shape, dtype=like.dtype)
    return torch.empty(like.shape, dtype=like.dtype).normal_(0, 0.02, generator=generator)


def _processor(config: Any) -> LlavaProcessor:
    words = {f"w{i}": i for i in range(3, config.image_token_index)}
    words |= {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": config.image_token_index, "<pad>": config.pad_token_id}
    pieces = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_max_length=4096, extra_special_tokens={"image_token": "<image>"}, **special
    )
    side = config.vision_config.image_size
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def records(folder: Path, n: int = 4, words: int = 24) -> Path:
    """A data folder: `n` pictures of coarse noise, each with a question and an answer of drawn words."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    lines = []
    for i in range(n):
        noise = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((336, 336)).save(folder / "images" / f"{i}.png")
        drawn = [f"w{j}" for j in torch.randint(3, 32000, (words,), generator=generator).tolist()]
        question, answer = " ".join(drawn[:-4]), " ".join(drawn[-4:])
        lines.append(json.dumps({"id": str(i), "image": f"images/{i}.png", "question": question, "answer": answer}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
