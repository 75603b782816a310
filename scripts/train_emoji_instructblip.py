"""Train the embedded dense model `emoji-instructblip`: `python scripts/train_emoji_instructblip.py WORK`.

A real InstructBLIP (ViT, a Q-Former that reads the question, T5) that learns from the scenes and questions of
`train_emoji_llava.py`. Its vision tower is `emoji-llava`'s, frozen, so what it makes of every scene is computed once;
then come STAGES, in order. Every stage is kept in the folder WORK and not run again once finished. The result is
WORK/emoji-instructblip in bfloat16. With two cores, let the first process see the scenes, then start again under
`torchrun --nproc-per-node 2`, one thread a process: that is faster than one process of two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from emoji_chats import Scenes, make_scenes
from emoji_lessons import WIDTH
from emoji_queries import QUERIES, SAID, Lessons, Questions
from emoji_tower import VISION, SeenScenes, from_llava
from emoji_training import BALANCED, FIRST, Keep, Stage, make_tokenizer, shortened, train
from safetensors.torch import load_file, save_file
from transformers import (
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionModel,
    PreTrainedTokenizerFast,
    T5Config,
    TrainerCallback,
    set_seed,
)

from ressa.data.emoji.scenes import SIZE

NAMED = {"where": 1, "exists": 2, "beside": 1, "above": 1, "relation": 1, "count kind": 2, "place": 1}
ASKED = BALANCED | {"caption": 0}  # captions are long, and the decoder would read every answer at their length
STAGES = (
    Stage("named", 700, 32, 2e-3, NAMED, seeing=True, shown=1),
    Stage("asked", 1200, 64, 2e-3, ASKED, turns=4, seeing=True, shown=0.3),
    Stage("answered", 1200, 64, 1.5e-3, ASKED, turns=4, seeing=True, shown=0.15),
)


def make_processor(scenes: Scenes) -> InstructBlipProcessor:
    special = ["<pad>", "<image>", "</s>", "<unk>"]
    tokenizer = make_tokenizer(scenes, special, "</s>", SAID)
    again = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    images = BlipImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return InstructBlipProcessor(images, tokenizer, again, num_query_tokens=QUERIES)


def text_config(tokenizer: PreTrainedTokenizerFast) -> T5Config:
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=WIDTH // 4,
        d_ff=2 * WIDTH,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )


def qformer_config(tokenizer: PreTrainedTokenizerFast) -> InstructBlipQFormerConfig:
    return InstructBlipQFormerConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        cross_attention_frequency=2,
    )


@torch.no_grad()
def make_model(tokenizer: PreTrainedTokenizerFast, tower: InstructBlipVisionModel):
    """Queries start apart (at zero they would stay alike), and the T5 reads unchanged what they say."""
    set_seed(0)
    config = InstructBlipConfig(
        vision_config=VISION,
        qformer_config=qformer_config(tokenizer),
        text_config=text_config(tokenizer),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = InstructBlipForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.vision_model.load_state_dict(tower.state_dict())
    model.query_tokens.normal_()
    model.language_projection.weight.copy_(torch.eye(WIDTH))
    return model


class Tell(TrainerCallback):
    """Prints the newest batch's losses, lesson by lesson, whenever the Trainer tells the mean of all."""

    def __init__(self, lessons: Lessons) -> None:
        self.lessons = lessons

    def on_log(self, args, state, control, **kwargs) -> None:
        if FIRST:
            told = ", ".join(f"{name} {loss:.3f}" for name, loss in self.lessons.told.items())
            print(f"step {state.global_step}: {told}", flush=True)


def make_tower(work: Path) -> InstructBlipVisionModel:
    if not (work / "tower").exists():
        from_llava(Scenes(work)).save_pretrained(work / "tower")
    return InstructBlipVisionModel.from_pretrained(work / "tower", attn_implementation="eager")


def train_stage(work: Path, scenes: SeenScenes, processor, lessons: Lessons, stage: Stage) -> None:
    """One of STAGES: from WORK if it is finished, else trained (and kept there)."""
    folder, blip = work / stage.name, lessons.blip
    if folder.exists():
        blip.load_state_dict(InstructBlipForConditionalGeneration.from_pretrained(folder).state_dict())
        lessons.load_state_dict(load_file(folder / "lessons.safetensors"), strict=False)
        return
    lessons.begin(answering=stage.name != "named", shown=stage.shown)
    collate = Questions(scenes, processor, stage.turns, stage.kinds)
    train(lessons, scenes, work, collate, stage, [Keep(blip, work / "latest"), Tell(lessons)])
    blip.requires_grad_(True)
    if FIRST:
        blip.save_pretrained(work / "partial")
        heads = {name: value for name, value in lessons.state_dict().items() if not name.startswith("blip.")}
        save_file(heads, work / "partial" / "lessons.safetensors")
        (work / "partial").rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", type=int, default=30_000)
    parser.add_argument("--quick", action="store_true", help="two steps a stage, to see that everything runs")
    parser.add_argument("--until", choices=[stage.name for stage in STAGES], default=STAGES[-1].name)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_scenes(args.work, args.scenes)
    tower = make_tower(args.work)
    scenes = SeenScenes(args.work, tower)
    processor = make_processor(scenes)
    model = make_model(processor.tokenizer, tower)
    lessons = Lessons(model)
    for stage in shortened(STAGES) if args.quick else STAGES:
        train_stage(args.work, scenes, processor, lessons, stage)
        if stage.name == args.until:
            break
    if args.until == STAGES[-1].name and FIRST:
        out = args.work / "emoji-instructblip"
        model.to(torch.bfloat16).save_pretrained(out)
        processor.save_pretrained(out)
        print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
