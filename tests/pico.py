"""Pico models: random models of every family with their processors, saved as ordinary transformers folders.

Each builder writes into the folder it is given and returns it. Nothing is downloaded: the tokenizer is trained on a few
sentences, the image processors are the PIL ones (no torchvision). Weights are drawn wide enough (0.2) that every layer
really changes its input; the default 0.02 would leave a 32-wide model close to the identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    T5Config,
)

IMAGE_SIZE = 32
PATCH_SIZE = 16
WIDTH = 32
INTERMEDIATE = 64
HEADS = 4
LAYERS = 2
QUERIES = 4
STD = 0.2
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
PAD, BOS, EOS, UNK, IMAGE = range(5)
SENTENCES = [
    "What colour is it? It is red. Is it a square or a circle?",
    "Question: what shape is left of the green square? Short answer: circle",
    "How many blue circles are there? one two three four five six seven eight nine",
    "a photo of a yellow square above a white circle on a black ground",
    "Is there a red circle? yes no. What is there? USER: ASSISTANT: cat dog",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred pieces: every text can be encoded and decoded back."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, padding_side="right", model_max_length=512, **names, **special)


def llava(folder: Path, *, tie: bool = False, intermediate: int = INTERMEDIATE) -> Path:
    """LLaVA: SigLIP tower (4 image tokens), MLP connector, Llama with grouped-query attention."""
    pieces = tokenizer(extra_special_tokens={"image_token": "<image>"})
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        text_config=_llama(len(pieces), tie=tie, intermediate=intermediate),
        image_token_index=IMAGE,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=tie,
    )
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=pieces,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    return _save(folder, LlavaForConditionalGeneration, config, processor)


def blip2_opt(folder: Path) -> Path:
    """BLIP-2 with OPT (its embeddings tied to its head)."""
    pieces = tokenizer()
    config = _blip(Blip2Config, Blip2VisionConfig, Blip2QFormerConfig, _opt(len(pieces)))
    processor = Blip2Processor(_blip_images(), pieces, num_query_tokens=QUERIES)
    return _save(folder, Blip2ForConditionalGeneration, config, processor)


def blip2_t5(folder: Path) -> Path:
    """BLIP-2 with an encoder-decoder."""
    pieces = tokenizer()
    config = _blip(Blip2Config, Blip2VisionConfig, Blip2QFormerConfig, _t5(len(pieces)))
    processor = Blip2Processor(_blip_images(), pieces, num_query_tokens=QUERIES)
    return _save(folder, Blip2ForConditionalGeneration, config, processor)


def instructblip_t5(folder: Path) -> Path:
    """InstructBLIP with T5: the Q-Former reads the question, the decoder attends across."""
    return _instructblip(folder, _t5(len(tokenizer())))


def instructblip_llama(folder: Path) -> Path:
    """InstructBLIP with Llama, as with Vicuna."""
    return _instructblip(folder, _llama(len(tokenizer())))


def causal_lm(folder: Path, *, tie: bool = True, intermediate: int = INTERMEDIATE) -> Path:
    """A text-only Llama; its embeddings are tied to its head unless told otherwise."""
    pieces = tokenizer()
    return _save(folder, LlamaForCausalLM, _llama(len(pieces), tie=tie, intermediate=intermediate), pieces)


BUILDERS = {
    "llava": llava,
    "blip2_opt": blip2_opt,
    "blip2_t5": blip2_t5,
    "instructblip_t5": instructblip_t5,
    "instructblip_llama": instructblip_llama,
    "causal_lm": causal_lm,
}


def _instructblip(folder: Path, text_config: Any) -> Path:
    config = _blip(InstructBlipConfig, InstructBlipVisionConfig, InstructBlipQFormerConfig, text_config)
    processor = InstructBlipProcessor(_blip_images(), tokenizer(), tokenizer(), num_query_tokens=QUERIES)
    return _save(folder, InstructBlipForConditionalGeneration, config, processor)


def _blip(config_class: Any, vision_class: Any, qformer_class: Any, text_config: Any) -> Any:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"intermediate_size": INTERMEDIATE, "initializer_range": STD}
    return config_class(
        vision_config=vision_class(image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, **sizes),
        qformer_config=qformer_class(vocab_size=len(tokenizer()), encoder_hidden_size=WIDTH, **sizes),
        text_config=text_config,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
        initializer_range=STD,
    )


def _blip_images() -> BlipImageProcessorPil:
    return BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def _llama(vocab: int, *, tie: bool = False, intermediate: int = INTERMEDIATE) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=intermediate,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=512,
        initializer_range=STD,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=tie,
    )


def _opt(vocab: int) -> OPTConfig:
    return OPTConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        init_std=STD,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def _t5(vocab: int) -> T5Config:
    return T5Config(
        vocab_size=vocab,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=INTERMEDIATE,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
        tie_word_embeddings=False,
    )


def _save(folder: Path, model_class: Any, config: Any, processor: Any) -> Path:
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "query_tokens" in name or not parameter.any():
                # biases, query tokens and Gemma 3's projection start at zero, norms at one: it would hide mistakes
                parameter.add_(torch.randn_like(parameter) * STD)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
