"""Train the embedded dense model `emoji-llava` from nothing: `python scripts/train_emoji_llava.py WORK`.

Every stage is kept in the folder WORK and not run again once finished: scenes are drawn; the SigLIP tower names what
stands in each of the nine cells; then the other STAGES, in order. Trained end to end from nothing, a model this small
learns the answers' statistics and never looks at the picture; and on answers alone it does not learn to look for a
thing by its name, so attention heads are shown where the things that a question names stand. The model's own card says
what its training did differently. The result is WORK/emoji-llava in bfloat16. With two cores, run scenes and vision
tower first, then start again under `torchrun --nproc-per-node 2`, one thread a process: that is faster than one
process of two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from emoji_chats import Chats, Scenes, make_scenes
from emoji_lessons import PATCH, SIDE, WIDTH, AnswerLoss, CellNames, PatchNames, ShownLoss
from emoji_training import BALANCED, EVERY, FIRST, Keep, Stage, make_tokenizer, quick_on_cpu, shortened, train
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    set_seed,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ressa.data.emoji.scenes import SIZE

VISION = SiglipVisionConfig(
    hidden_size=WIDTH,
    intermediate_size=4 * WIDTH,
    num_hidden_layers=6,
    num_attention_heads=4,
    image_size=SIZE,
    patch_size=PATCH,
    vision_use_head=False,
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RELATED = {"where": 2, "exists": 2, "beside": 2, "above": 2, "relation": 3, "place": 1.5, "count kind": 1.5}
RELATED |= {"name": 0.3, "count": 0.7, "kind": 0.7, "caption": 0.2}
COUNTED = BALANCED | {"kind": 4, "count kind": 3, "beside": 2.5, "above": 2.5, "name": 1, "caption": 0.2}
COUNTED |= {"where": 0.7, "exists": 0.7, "count": 0.5, "relation": 0.4}

STAGES = (
    Stage("vision", 1410, 128, 1.5e-3),
    Stage("language", 940, 128, 1.5e-3, EVERY, turns=6),
    Stage("aligned", 400, 128, 1e-3, seeing=True),
    Stage("named", 752, 128, 1.5e-3, seeing=True),
    Stage("words", 1595, 32, 1.5e-3, dict.fromkeys(("name", "place", "where", "kind"), 1.0)),
    Stage("chat", 1783, 32, 1.2e-3, EVERY),
    Stage("where", 500, 32, 1.5e-3, {"where": 1.0}, shown=0.3),
    Stage("related", 1500, 32, 1.5e-3, RELATED, turns=10, shown=0.3),
    Stage("balanced", 1300, 32, 1.5e-3, BALANCED, turns=10, shown=0.3),
    Stage("counted", 1200, 32, 1.5e-3, COUNTED, turns=10, shown=0.15),
)


# ---- the model -------------------------------------------------------------------------------------------------------


def make_processor(scenes: Scenes) -> LlavaProcessor:
    special = ["<pad>", "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>"]
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}),
        tokenizer=make_tokenizer(scenes, special, "<|end|>"),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )


def make_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=VISION,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=SIDE**2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")


@torch.no_grad()
def to_text_scale(llava: LlavaForConditionalGeneration, scenes: Scenes) -> None:
    """Makes image tokens as long as text tokens: at many times that length, no block could change what they say."""
    image = torch.stack(llava.model.get_image_features(scenes.pictures(list(range(64)))).pooler_output)
    ratio = llava.get_input_embeddings().weight.norm(dim=-1).mean() / image.norm(dim=-1).mean()
    for parameter in llava.model.multi_modal_projector.linear_2.parameters():
        parameter *= ratio


# ---- the stages ------------------------------------------------------------------------------------------------------


def train_vision(work: Path, scenes: Scenes, stage: Stage) -> SiglipVisionModel:
    if (work / "vision").exists():
        return SiglipVisionModel.from_pretrained(work / "vision")
    set_seed(0)
    vision = SiglipVisionModel._from_config(VISION, attn_implementation="eager")
    quick_on_cpu(vision.embeddings.patch_embedding)
    train(CellNames(vision), scenes, work, scenes, stage, muon=False)
    vision.save_pretrained(work / "vision")
    return vision


def train_stage(work: Path, scenes: Scenes, processor, model, stage: Stage) -> LlavaForConditionalGeneration:
    """One of STAGES: from WORK if it is finished, else trained (and kept there)."""
    folder = work / stage.name
    if folder.exists():
        return LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    quick_on_cpu(model.model.vision_tower.embeddings.patch_embedding)
    if stage.name == "aligned":
        model.model.multi_modal_projector.apply(model._init_weights)
    if stage.name == "words":
        to_text_scale(model, scenes)
    model.model.vision_tower.requires_grad_(stage.seeing)
    model.model.multi_modal_projector.requires_grad_(stage.seeing)
    model.model.language_model.requires_grad_(bool(stage.kinds))
    model.model.vision_tower.post_layernorm.requires_grad_(False)  # LLaVA reads the layer before it
    if stage.kinds:
        learner = ShownLoss(model, stage.shown) if stage.shown else AnswerLoss(model)
        collate = Chats(scenes, processor, stage.turns, stage.kinds)
    else:
        learner, collate = PatchNames(model, pooled=stage.name == "named"), scenes
    train(learner, scenes, work, collate, stage, [Keep(model, work / "latest")], muon=bool(stage.shown))
    model.requires_grad_(True)
    if FIRST:
        model.save_pretrained(folder)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", type=int, default=30_000)
    parser.add_argument("--quick", action="store_true", help="two steps a stage, to see that everything runs")
    parser.add_argument("--until", choices=[stage.name for stage in STAGES], default=STAGES[-1].name)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_scenes(args.work, args.scenes)
    scenes = Scenes(args.work)
    first, *others = shortened(STAGES) if args.quick else STAGES
    vision = train_vision(args.work, scenes, first)
    processor = make_processor(scenes)
    model = make_model(processor)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    for stage in others if args.until != "vision" else ():
        model = train_stage(args.work, scenes, processor, model, stage)
        if stage.name == args.until:
            break
    if args.until == STAGES[-1].name and FIRST:
        out = args.work / "emoji-llava"
        model.to(torch.bfloat16).save_pretrained(out)
        processor.save_pretrained(out)
        print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
