"""How the embedded models are trained: stages, the optimizer, the tokenizer, and what makes a CPU quick at it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from emoji_chats import NAMES, Scenes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments, set_seed

from ressa.data.emoji.questions import QUESTIONS, ask
from ressa.families import CAPTION

VOCABULARY = 1536
WORLD, FIRST = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"  # torchrun's; one writes
EVERY = dict.fromkeys(QUESTIONS, 1.0) | {"name": 6, "place": 2, "beside": 2, "above": 2, "caption": 1.5}
BALANCED = dict.fromkeys(QUESTIONS, 1.0) | {"place": 3, "name": 1.5, "kind": 2, "count kind": 2.5, "caption": 0.3}
BALANCED |= {"beside": 2, "above": 2}


@dataclass(frozen=True)
class Stage:
    """What one stage teaches: to name what is in the picture (no kinds), or the questions of these kinds."""

    name: str
    steps: int
    batch: int
    lr: float
    kinds: dict[str, float] = field(default_factory=dict)
    turns: int = 8
    seeing: bool = False  # what sees learns too: LLaVA's tower and connector, InstructBLIP's Q-Former
    shown: float = 0  # the weight of the losses that show heads where to look


def shortened(stages: Iterable[Stage]) -> list[Stage]:
    """Two steps each, to see that everything runs."""
    return [replace(stage, steps=2, batch=8) for stage in stages]


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

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        self.model, self.folder = model, folder

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if FIRST and state.global_step % 100 == 0:
            self.model.save_pretrained(self.folder)


class MuonAndAdam(torch.optim.Optimizer):
    """Muon for the matrices, AdamW for embeddings, norms and biases."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        learning = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in learning if p.ndim == 2 and id(p) not in tables]
        others = [p for p in learning if p.ndim != 2 or id(p) in tables]
        self.both = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
        )
        super().__init__(learning, {})
        self.param_groups = [group for one in self.both for group in one.param_groups]

    def step(self, closure=None) -> None:
        for one in self.both:
            one.step()


def train(model: nn.Module, scenes: Scenes, work: Path, collate, stage: Stage, keep=(), muon: bool = True) -> None:
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
    optimizer = MuonAndAdam(model, stage.lr) if muon else None
    data = Indices(len(scenes.scenes))
    Trainer(model, args, collate, data, optimizers=(optimizer, None), callbacks=list(keep)).train()


def quick_on_cpu(conv: nn.Conv2d) -> None:
    """Patches by a matrix product: on a CPU the backward of a bf16 convolution crawls (as does fused attention's)."""
    p = conv.kernel_size[0]

    def patches_times_weight(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return nn.functional.linear(x, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)

    conv.forward = patches_times_weight


def make_tokenizer(
    scenes: Scenes, special: list[str], end: str, prompts: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Byte-pair encoding, trained on questions, answers, names and `prompts`; `special` has <pad> and <unk>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    asked = (pair for shown in scenes.scenes[:20_000] for pair in ask(shown, 10))
    texts = [text for pair in asked for text in (pair["question"], pair["answer"])]
    tokenizer.train_from_iterator(
        [*texts, *NAMES * 20, *[text for text in (CAPTION, *prompts) for _ in range(1000)]],
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False),
    )
    others = [token for token in special if token not in ("<pad>", "<unk>", end)]
    names = {"pad_token": "<pad>", "eos_token": end, "unk_token": "<unk>", "additional_special_tokens": others}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)
