"""Train the embedded dense model `emoji-llava` from nothing: `python scripts/train_emoji_llava.py WORK`.

Every stage is kept in the folder WORK and not run again once finished: scenes are drawn; the SigLIP tower names what
stands in each of the nine cells; then the other STAGES, in order. Trained end to end from nothing, a model this small
learns the answers' statistics and never looks at the picture; and on answers alone it does not learn to look for a
thing by its name, so attention heads are shown where the things that a question names stand. The model's own card says
what its training did differently. The result is WORK/emoji-llava in bfloat16. With two cores, run scenes and vision
tower first, then start again under `torchrun --nproc-per-node 2`, one thread a process: that is faster than one
process of two.

Shapes: B pictures or chats, T tokens, P image tokens (6 x 6), D width, H heads, M mentions.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from emoji_chats import AWAY, NAMES, NOTHING, Chats, Scenes, make_scenes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ressa.data.emoji.questions import QUESTIONS, ask
from ressa.data.emoji.scenes import SIZE
from ressa.data.prompts import CAPTION

PATCH, WIDTH, VOCABULARY = 24, 144, 1536
SIDE = SIZE // PATCH  # patches a side; each cell of a scene is 2 x 2 of them
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
WORLD, FIRST = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"  # torchrun's; one writes
EVERY = dict.fromkeys(QUESTIONS, 1.0) | {"name": 6, "place": 2, "beside": 2, "above": 2, "caption": 1.5}
HARD = {"where": 2, "exists": 2, "beside": 2, "above": 2, "relation": 3, "place": 1.5, "count kind": 1.5}
RELATED = HARD | {"name": 0.3, "count": 0.7, "kind": 0.7, "caption": 0.2}
BALANCED = dict.fromkeys(QUESTIONS, 1.0) | {"place": 3, "name": 1.5, "kind": 2, "count kind": 2.5, "caption": 0.3}
BALANCED |= {"beside": 2, "above": 2}
COUNTED = BALANCED | {"kind": 4, "count kind": 3, "beside": 2.5, "above": 2.5, "name": 1, "caption": 0.2}
COUNTED |= {"where": 0.7, "exists": 0.7, "count": 0.5, "relation": 0.4}


@dataclass(frozen=True)
class Stage:
    """What one stage teaches: image tokens to name their cells (no kinds), or the questions of these kinds."""

    name: str
    steps: int
    batch: int
    lr: float
    kinds: dict[str, float] = field(default_factory=dict)
    turns: int = 8
    seeing: bool = False  # the vision tower and the connector learn too
    shown: float = 0  # the weight of the loss that shows heads where to look


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


# ---- training --------------------------------------------------------------------------------------------------------


class Indices(torch.utils.data.Dataset):
    """The numbers 0 to n-1: the collator fetches a whole batch at once."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        return i


class Keep(TrainerCallback):
    """Keeps the model in a folder every 100 steps, to look at while it learns."""

    def __init__(self, llava: LlavaForConditionalGeneration, folder: Path) -> None:
        self.llava, self.folder = llava, folder

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if FIRST and state.global_step % 100 == 0:
            self.llava.save_pretrained(self.folder)


class MuonAndAdam(torch.optim.Optimizer):
    """Muon for the matrices, AdamW for embeddings, norms and biases."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in learning if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in learning if p.ndim != 2 or "embed" in name]
        self.both = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
        )
        super().__init__([p for _, p in learning], {})
        self.param_groups = [group for one in self.both for group in one.param_groups]

    def step(self, closure=None) -> None:
        for one in self.both:
            one.step()


def train(model: nn.Module, scenes: Scenes, work: Path, collate, stage: Stage, keep=()) -> None:
    set_seed(stage.steps)
    args = TrainingArguments(
        str(work / "trainer"),
        per_device_train_batch_size=stage.batch // WORLD,
        max_steps=stage.steps,
        learning_rate=stage.lr,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.05,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        use_cpu=True,
        ddp_backend="gloo" if WORLD > 1 else None,
        ddp_find_unused_parameters=False,
        bf16=True,
        save_strategy="no",
        report_to=[],
        logging_steps=50,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        seed=stage.steps,
    )
    optimizer = MuonAndAdam(model, stage.lr) if stage.shown else None
    data = Indices(len(scenes.scenes))
    Trainer(model, args, collate, data, optimizers=(optimizer, None), callbacks=list(keep)).train()


def quick_on_cpu(vision: SiglipVisionModel) -> None:
    """Patches by a matrix product: on a CPU the backward of a bf16 convolution crawls (as does fused attention's)."""
    conv = vision.embeddings.patch_embedding

    def patches_times_weight(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return nn.functional.linear(x, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)

    conv.forward = patches_times_weight


# ---- what is learned -------------------------------------------------------------------------------------------------


def cells_of_patches() -> Tensor:
    """The cell of each image token, (P,)."""
    third = torch.arange(SIDE) * 3 // SIDE
    return (3 * third[:, None] + third[None, :]).flatten()


def by_cell(x_BPD: Tensor) -> Tensor:
    """Image tokens grouped by cell, (B, 9, 4, D)."""
    b, d = len(x_BPD), x_BPD.shape[-1]
    return x_BPD.view(b, 3, 2, 3, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(b, 9, 4, d)


def naming_loss(logits: Tensor, labels: Tensor) -> Tensor:
    weight = torch.ones(len(NAMES) + 1)
    weight[NOTHING] = 0.2  # empty cells are many and easy
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight)


class CellNames(nn.Module):
    """The vision tower with a linear head on the 2 x 2 patches of each cell."""

    def __init__(self, vision: SiglipVisionModel) -> None:
        super().__init__()
        self.vision, self.head = vision, nn.Linear(4 * WIDTH, len(NAMES) + 1)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(by_cell(self.vision(pixel_values).last_hidden_state).flatten(2))
        return {"loss": naming_loss(logits, labels), "logits": logits}


class PatchNames(nn.Module):
    """LLaVA with linear heads: every image token, and the mean of each cell, names the thing there; and the cell."""

    def __init__(self, llava: LlavaForConditionalGeneration, pooled: bool) -> None:
        super().__init__()
        self.llava, self.pooled = llava, pooled
        self.name, self.cell = nn.Linear(WIDTH, len(NAMES) + 1), nn.Linear(WIDTH, 9)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        tokens_BPD = torch.stack(self.llava.model.get_image_features(pixel_values).pooler_output)
        cells_P = cells_of_patches()
        names = self.name(tokens_BPD)
        each = naming_loss(names, labels[:, cells_P])
        together = naming_loss(self.name(by_cell(tokens_BPD).mean(2)), labels)
        places = self.cell(tokens_BPD).float().flatten(0, 1)
        place = nn.functional.cross_entropy(places, cells_P.repeat(len(labels)))
        return {"loss": (together + 0.5 * each if self.pooled else each) + 0.3 * place, "logits": names}


class AnswerLoss(nn.Module):
    """LLaVA's own forward and loss, with logits at the answers only: most positions are picture or question."""

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.llava = llava

    def forward(
        self, labels: Tensor, mentions: Tensor, kinds: Tensor, answers: Tensor, **inputs: Tensor
    ) -> dict[str, Tensor]:
        hidden = self.llava.model(**inputs, use_cache=False).last_hidden_state
        answer = labels[:, 1:] != -100
        logits = self.llava.lm_head(hidden[:, :-1][answer]).float()
        return {"loss": nn.functional.cross_entropy(logits, labels[:, 1:][answer]), "logits": logits}


class ShownLoss(AnswerLoss):
    """AnswerLoss, and attention heads are shown where to look.

    In the second block, at the last token of a thing's name two heads look at its cell and a linear layer must read the
    cell there; at a kind that is counted the other two look at all things of it; where there is none, at the first
    token. In the last block, what stands before an answer looks at the answer's cell.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, weight: float) -> None:
        super().__init__(llava)
        self.weight, self.probe, self.seen = weight, nn.Linear(WIDTH, AWAY + 1), {}
        blocks = llava.model.language_model.layers
        blocks[1].self_attn.register_forward_hook(lambda module, args, out: self.seen.update(second=out[1]))
        blocks[-1].self_attn.register_forward_hook(lambda module, args, out: self.seen.update(last=out[1]))
        blocks[1].register_forward_hook(lambda module, args, out: self.seen.update(hidden=out))
        self.tokens = torch.zeros(AWAY + 1, 1 + SIDE**2)  # of each cell; the first is <|user|>, then the picture
        self.tokens[cells_of_patches(), torch.arange(SIDE**2) + 1] = 1
        self.tokens[AWAY, 0] = 1

    def looked(self, attention_BHTT: Tensor, heads: slice, pointers_M3: Tensor) -> Tensor:
        """Minus the log of the attention that the cells pointed to get, the mean over pointers and heads."""
        chat_M, token_M, bits_M = pointers_M3.T
        attention_MHP = attention_BHTT[chat_M, heads, token_M, : 1 + SIDE**2].float()
        wanted_MP = cells_of(bits_M) @ self.tokens
        return -((attention_MHP * wanted_MP[:, None]).sum(-1) + 1e-3).log().mean()

    def forward(
        self, labels: Tensor, mentions: Tensor, kinds: Tensor, answers: Tensor, **inputs: Tensor
    ) -> dict[str, Tensor]:
        out = super().forward(labels, mentions, kinds, answers, **inputs)
        shown = labels.new_zeros((), dtype=torch.float32)
        if len(mentions):
            chat_M, token_M, bits_M = mentions.T
            read = self.probe(self.seen["hidden"][chat_M, token_M]).float()
            shown = shown + nn.functional.cross_entropy(read, cells_of(bits_M).argmax(1))
            shown = shown + self.looked(self.seen["second"], slice(0, 2), mentions)
        if len(kinds):
            shown = shown + self.looked(self.seen["second"], slice(2, 4), kinds)
        if len(answers):
            shown = shown + self.looked(self.seen["last"], slice(0, 2), answers)
        return out | {"loss": out["loss"] + self.weight * shown}


def cells_of(bits_M: Tensor) -> Tensor:
    """Bit sets as rows of zeros and ones, (M, 10)."""
    return ((bits_M[:, None] >> torch.arange(AWAY + 1)) & 1).float()


# ---- the model -------------------------------------------------------------------------------------------------------


def make_processor(scenes: Scenes) -> LlavaProcessor:
    special = ["<pad>", "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    asked = (pair for shown in scenes.scenes[:20_000] for pair in ask(shown, 10))
    texts = [text for pair in asked for text in (pair["question"], pair["answer"])]
    tokenizer.train_from_iterator(
        [*texts, *NAMES * 20, *[CAPTION] * 1000],
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<|user|>", "<|assistant|>"],
        model_max_length=512,
    )
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}),
        tokenizer=fast,
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
    quick_on_cpu(vision)
    train(CellNames(vision), scenes, work, scenes, stage)
    vision.save_pretrained(work / "vision")
    return vision


def train_stage(work: Path, scenes: Scenes, processor, model, stage: Stage) -> LlavaForConditionalGeneration:
    """One of STAGES: from WORK if it is finished, else trained (and kept there)."""
    folder = work / stage.name
    if folder.exists():
        return LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    quick_on_cpu(model.model.vision_tower)
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
    train(learner, scenes, work, collate, stage, [Keep(model, work / "latest")])
    model.requires_grad_(True)
    if FIRST:
        model.save_pretrained(folder)
    return model


def stages(quick: bool) -> list[Stage]:
    return [replace(stage, steps=2, batch=8) for stage in STAGES] if quick else list(STAGES)


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
    first, *others = stages(args.quick)
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
