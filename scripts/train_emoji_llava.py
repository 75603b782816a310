"""Train the embedded dense model `emoji-llava` from nothing: `python scripts/train_emoji_llava.py WORK`.

Every stage is kept in the folder WORK and not run again once finished: scenes are drawn; the SigLIP tower names what
stands in each of the nine cells; then STAGES, in order. Trained end to end from nothing, a model this small learns the
answers' statistics and never looks at the picture. The model in the repository differs in two settings: its connector
also learned in `language`, the warm-up of `language` and of the tower was 200 steps, that of the others 5 %.
The result is WORK/emoji-llava in bfloat16. With two cores, run the scenes and the vision tower first, then start again
under `torchrun --nproc-per-node 2` (one thread a process): two processes train faster than two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
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

from ressa.data.emoji.questions import QUESTIONS, ask, caption
from ressa.data.emoji.scenes import PLACES, SIZE, draw, scene
from ressa.data.emoji.things import things
from ressa.data.prompts import CAPTION

PATCH, WIDTH = 24, 144
TOKENS = (SIZE // PATCH) ** 2  # patches a picture; each cell of a scene is 2 x 2 of them
CAPTIONS = 0.08  # share of the chats that end in a caption
VISION = SiglipVisionConfig(
    hidden_size=WIDTH,
    intermediate_size=4 * WIDTH,
    num_hidden_layers=6,
    num_attention_heads=4,
    image_size=SIZE,
    patch_size=PATCH,
    vision_use_head=False,
)
WORLD, FIRST = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"  # torchrun's; one writes
NAMES = [t.name for t in things()]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


# ---- scenes ----------------------------------------------------------------------------------------------------------


def _drawn(index: int) -> tuple[bytes, list[int], list[dict[str, str]]]:
    shown = scene("train", index)
    cells = [len(NAMES)] * 9
    for p in shown.placed:
        cells[p.cell] = NAMES.index(p.thing.name)
    return np.asarray(draw(shown)).tobytes(), cells, ask(shown, 10)


def make_scenes(work: Path, n: int) -> None:
    if (work / "questions.json").exists():
        return
    pixels = np.lib.format.open_memmap(work / "pixels.npy", "w+", np.uint8, (n, SIZE, SIZE, 3))
    cells = np.zeros((n, 9), np.int64)
    questions = []
    with ProcessPoolExecutor(2) as pool:
        for i, (picture, named, asked) in enumerate(pool.map(_drawn, range(n), chunksize=256)):
            pixels[i] = np.frombuffer(picture, np.uint8).reshape(SIZE, SIZE, 3)
            cells[i] = named
            questions.append([(q["question"], q["answer"]) for q in asked])
    np.save(work / "cells.npy", cells)
    (work / "questions.json").write_text(json.dumps(questions))


class Indices(torch.utils.data.Dataset):
    """The numbers 0 to n-1: the collator fetches a whole batch at once."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        return i


def to_pixels(batch_uint8: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(batch_uint8).permute(0, 3, 1, 2).float() / 127.5 - 1


class Keep(TrainerCallback):
    """Keeps the model in a folder every 100 steps, to look at while it learns."""

    def __init__(self, llava: LlavaForConditionalGeneration, folder: Path) -> None:
        self.llava, self.folder = llava, folder

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if FIRST and state.global_step % 100 == 0:
            self.llava.save_pretrained(self.folder)


def train(
    model: nn.Module, work: Path, n: int, collate, *, epochs: float, batch: int, lr: float, seed: int, keep=()
) -> None:
    set_seed(seed)
    args = TrainingArguments(
        str(work / "trainer"),
        per_device_train_batch_size=batch,
        num_train_epochs=epochs,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.05,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        bf16=True,
        save_strategy="no",
        report_to=[],
        logging_steps=50,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        seed=seed,
    )
    Trainer(model=model, args=args, train_dataset=Indices(n), data_collator=collate, callbacks=list(keep)).train()


def quick_on_cpu(model: nn.Module, vision: SiglipVisionModel) -> nn.Module:
    """Train with plain matrix products: on a CPU the backwards of fused attention and of a bf16 convolution crawl."""
    conv = vision.embeddings.patch_embedding

    def patches_times_weight(x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return nn.functional.linear(x, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)

    conv.forward = patches_times_weight
    return model


# ---- vision ----------------------------------------------------------------------------------------------------------


class Cells:
    """Collates scene numbers to pictures and the names in their nine cells."""

    def __init__(self, work: Path) -> None:
        self.pixels, self.named = np.load(work / "pixels.npy", mmap_mode="r"), np.load(work / "cells.npy")

    def __call__(self, batch: list[int]) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels(self.pixels[batch]), "labels": torch.from_numpy(self.named[batch])}


class CellNames(nn.Module):
    """The vision tower with a linear head on the 2 x 2 patches of each cell."""

    def __init__(self, vision: SiglipVisionModel) -> None:
        super().__init__()
        self.vision = vision
        self.head = nn.Linear(4 * WIDTH, len(NAMES) + 1)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.vision(pixel_values).last_hidden_state
        b = x.shape[0]
        x = x.view(b, 3, 2, 3, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(b, 9, 4 * WIDTH)
        logits = self.head(x).float()
        weight = torch.ones(len(NAMES) + 1)
        weight[-1] = 0.2  # empty cells are many and easy
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight)
        return {"loss": loss, "logits": logits}


def train_vision(work: Path, config: SiglipVisionConfig, epochs: float) -> SiglipVisionModel:
    if (work / "vision").exists():
        return SiglipVisionModel.from_pretrained(work / "vision")
    set_seed(0)
    cells = Cells(work)
    vision = SiglipVisionModel._from_config(config, attn_implementation="eager")
    model = quick_on_cpu(CellNames(vision), vision)
    train(model, work, len(cells.named), cells, epochs=epochs, batch=128, lr=1.5e-3, seed=0)
    vision.save_pretrained(work / "vision")
    return vision


# ---- the whole model -------------------------------------------------------------------------------------------------


def make_processor(work: Path, vocabulary: int) -> LlavaProcessor:
    special = ["<pad>", "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    questions = json.loads((work / "questions.json").read_text())[:20_000]
    texts = (text for asked in questions for pair in asked for text in pair)
    tokenizer.train_from_iterator(
        [*texts, *NAMES * 20, *[CAPTION] * 1000],
        trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False),
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


def make_model(processor: LlavaProcessor, vision: SiglipVisionConfig) -> LlavaForConditionalGeneration:
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
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=TOKENS,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")


class AnswerLoss(nn.Module):
    """LLaVA's own forward and loss, with logits at the answers only: most positions are picture or question."""

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.llava = llava

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.llava.model(**inputs, use_cache=False).last_hidden_state
        answer = labels[:, 1:] != -100
        logits = self.llava.lm_head(hidden[:, :-1][answer]).float()
        return {"loss": nn.functional.cross_entropy(logits, labels[:, 1:][answer]), "logits": logits}


class Chats:
    """Collates scene numbers to chats of up to `turns` questions about each picture; loss on the answers only."""

    def __init__(self, work: Path, processor: LlavaProcessor, turns: int) -> None:
        self.pixels = np.load(work / "pixels.npy", mmap_mode="r")
        self.questions = json.loads((work / "questions.json").read_text())
        self.turns, self.words = turns, False
        self.named = np.load(work / "cells.npy")
        self.rng = random.Random(f"{turns}/{os.environ.get('RANK', 0)}")
        tokenizer = processor.tokenizer
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.user, self.assistant, self.image = tokenizer.convert_tokens_to_ids(
            ["<|user|>", "<|assistant|>", "<image>"]
        )
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.known[text]

    def of_cells(self, index: int) -> list[tuple[str, str]]:
        """Every question that ties one name, one place and one kind together."""
        asked = [("What is this?", NAMES[n]) for n in self.named[index] if n < len(NAMES)]
        asked = asked if len(asked) == 1 else []
        for place, n in zip(PLACES, self.named[index], strict=True):
            if n < len(NAMES):
                asked.append((f"What is in the {place}?", NAMES[n]))
                asked.append((f"Where is the {NAMES[n]}?", place))
                asked.append((f"What kind of thing is in the {place}?", things()[n].kind))
        return asked

    def chat(self, index: int) -> tuple[list[int], list[int]]:
        asked = self.of_cells(index) if self.words else self.questions[index]
        asked = self.rng.sample(asked, min(self.turns, len(asked)))
        if not self.words and self.rng.random() < CAPTIONS and len(scene("train", index).placed) <= 3:
            asked[-1] = (CAPTION, caption(scene("train", index)))
        ids, labels = [], []
        for turn, (question, answer) in enumerate(asked):
            prompt = [self.user, *([self.image] * TOKENS if turn == 0 else []), *self.tokens(question), self.assistant]
            reply = [*self.tokens(answer), self.end]
            ids += prompt + reply
            labels += [-100] * len(prompt) + reply
        return ids, labels

    def __call__(self, batch: list[int]) -> dict[str, torch.Tensor]:
        chats = [self.chat(i) for i in batch]
        length = -(-max(len(ids) for ids, _ in chats) // 32) * 32  # few shapes: each new one is compiled anew
        pad = lambda values, fill: [v + [fill] * (length - len(v)) for v in values]  # noqa: E731
        ids = torch.tensor(pad([ids for ids, _ in chats], self.pad))
        return {
            "input_ids": ids,
            "attention_mask": (ids != self.pad).long(),
            "labels": torch.tensor(pad([labels for _, labels in chats], -100)),
            "pixel_values": to_pixels(self.pixels[batch]),
        }


@torch.no_grad()
def to_text_scale(llava: LlavaForConditionalGeneration, work: Path) -> None:
    """Makes image tokens as long as text tokens: at many times that length, no block could change what they say."""
    pixels = to_pixels(np.load(work / "pixels.npy", mmap_mode="r")[:64])
    image = torch.stack(llava.model.get_image_features(pixels).pooler_output).norm(dim=-1).mean()
    text = llava.get_input_embeddings().weight.norm(dim=-1).mean()
    for parameter in llava.model.multi_modal_projector.linear_2.parameters():
        parameter *= text / image


class PatchNames(nn.Module):
    """LLaVA with linear heads: every image token, and the mean of each cell, names the thing there; and the cell."""

    def __init__(self, llava: LlavaForConditionalGeneration, pooled: bool) -> None:
        super().__init__()
        self.llava, self.pooled = llava, pooled
        self.name, self.cell = nn.Linear(WIDTH, len(NAMES) + 1), nn.Linear(WIDTH, 9)
        self.weight = torch.ones(len(NAMES) + 1)
        self.weight[-1] = 0.2  # empty cells are many and easy
        row, column = torch.meshgrid(torch.arange(6) // 2, torch.arange(6) // 2, indexing="ij")
        self.cells = (3 * row + column).flatten()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = torch.stack(self.llava.model.get_image_features(pixel_values).pooler_output)
        pooled = tokens.view(-1, 3, 2, 3, 2, WIDTH).mean((2, 4)).flatten(1, 2)
        names, cells = self.name(tokens).float(), self.cell(tokens).float()
        each = nn.functional.cross_entropy(names.flatten(0, 1), labels[:, self.cells].flatten(), self.weight)
        together = nn.functional.cross_entropy(self.name(pooled).float().flatten(0, 1), labels.flatten(), self.weight)
        place = nn.functional.cross_entropy(cells.flatten(0, 1), self.cells.repeat(len(labels)))
        named = together + 0.5 * each if self.pooled else each
        return {"loss": named + 0.3 * place, "logits": names}


STAGES = (  # name, questions a chat, epochs, batch, learning rate, whether the vision tower learns too
    ("language", 6, 4, 128, 1.5e-3, False),
    ("aligned", 0, 1.7, 128, 1e-3, True),
    ("named", 0, 3.2, 128, 1.5e-3, True),
    ("words", 8, 1.7, 32, 1.5e-3, False),
    ("chat", 8, 1.9, 32, 1.2e-3, False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", type=int, default=30_000)
    parser.add_argument("--until", choices=["vision", *(name for name, *_ in STAGES)], default="chat")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_scenes(args.work, args.scenes)
    vision = train_vision(args.work, VISION, 6)
    processor = make_processor(args.work, 1536)
    model = make_model(processor, VISION)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    for stage, turns, epochs, batch, lr, seeing in STAGES if args.until != "vision" else ():
        model = train_stage(args.work, processor, model, stage, turns, epochs, batch, lr, seeing)
        if stage == args.until:
            break
    if args.until == STAGES[-1][0] and FIRST:
        out = args.work / "emoji-llava"
        model.to(torch.bfloat16).save_pretrained(out)
        processor.save_pretrained(out)
        print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters; asked: {', '.join(QUESTIONS)}")


def train_stage(work, processor, model, stage: str, turns: int, epochs: float, batch: int, lr: float, seeing: bool):
    """One of STAGES: from WORK if it is finished, else trained (and kept there)."""
    folder = work / stage
    if folder.exists():
        return LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    quick_on_cpu(model, model.model.vision_tower)
    if stage == "words":
        to_text_scale(model, work)
    model.model.vision_tower.requires_grad_(seeing)
    model.model.multi_modal_projector.requires_grad_(seeing)
    if turns:
        learner, collate = AnswerLoss(model), Chats(work, processor, turns)
        collate.words = stage == "words"
    else:
        if stage == "aligned":
            model.model.multi_modal_projector.apply(model._init_weights)
        learner, collate = PatchNames(model, pooled=stage == "named"), Cells(work)
    n = len(np.load(work / "cells.npy"))
    model.model.language_model.requires_grad_(turns > 0)
    model.model.vision_tower.post_layernorm.requires_grad_(False)  # LLaVA reads the layer before it
    train(
        learner,
        work,
        n,
        collate,
        epochs=epochs,
        batch=batch // WORLD,
        lr=lr,
        seed=turns,
        keep=[Keep(model, work / "latest")],
    )
    model.requires_grad_(True)
    if FIRST:
        model.save_pretrained(folder)
    return model


if __name__ == "__main__":
    main()
