"""The settings of `repair`, and what the objective says where they leave it open."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

from ressa.errors import RessaError, unknown
from ressa.settings import SEEDS, check, setting

# What stands for None. The second is what RESSA's released code does: facts in docs/repair.md
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ressa": {
        "lr": 1e-3,
        "warmup": 0.03,
        "clip": 1.0,
        "rank": 32,
        "alpha": 64.0,
        "kl_weight": 0.5,
        "temperature": 2.0,
        "hidden_weight": 100.0,
        "train_norms": True,
        "train_biases": True,
        "train_connector": False,
    },
    "paper": {
        "lr": 1e-4,
        "warmup": 0.0,
        "clip": 0.0,
        "rank": 8,
        "vision_rank": 4,
        "connector_rank": 2,
        "alpha": 16.0,
        "kl_weight": 0.1,
        "temperature": 1.0,
        "hidden_weight": 0.0,
        "train_norms": False,
        "train_biases": False,
        "train_connector": False,
    },
}
UPDATES = (  # settings of low-rank updates
    *("rank", "vision_rank", "connector_rank", "language_rank"),
    *("alpha", "vision_alpha", "connector_alpha", "language_alpha", "dropout"),
)
MASKED_LR = 2e-4  # of masked-ft: whole weights move, not the small factors of an update
IDLE = ("split", "bf16", "checkpoint_every", "report_to")  # settings that do not decide what comes out


@dataclass(frozen=True)
class Repair:
    """SparseLoRA and cross-modality adaptation: how the weights that stay are trained."""

    split: str = setting(
        "train", "Which records train; several with + between them, and shares: train:3+train_captions:1."
    )
    seed: int = setting(0, "Draws the samples, their order and the adapters.", least=0, most=SEEDS)
    samples: int | None = setting(None, "How many of them. [all]")
    labels: str = setting(
        "data",
        "Whose answers are learnt: those of the data; the teacher's, so that pictures and prompts are enough; or the "
        "teacher's where data are missing.",
        among=("data", "teacher", "missing"),
    )
    describe: float = setting(
        0.0,
        "Share of the questions in whose place the teacher describes the picture, so that it is not forgotten how.",
        least=0,
        most=1,
    )
    label_tokens: int = setting(128, "The longest answer of the teacher that is learnt.")
    steps: int | None = setting(None, "Optimiser steps; 0 reconstructs only. [one pass over the samples]", least=0)
    batch_size: int = setting(16, "Records a step, in each process.")
    accumulate: int = setting(1, "So many batches make a step.")
    lr: float | None = setting(
        None,
        "Peak learning rate; cosine to 0 after the warm-up; constant for the paper. [1e-3; masked-ft 2e-4; paper 1e-4]",
        above=0,
    )
    warmup: float | None = setting(
        None, "Share of the steps until the peak learning rate. [0.03; paper 0]", least=0, most=1
    )
    clip: float | None = setting(None, "Largest norm of the gradient; 0 does not clip. [1; paper 0]", least=0)
    adapter: str = setting(
        "sparse-lora",
        "What trains the kept weights: sparse-lora; ste (the same with cheap, biased gradients); masked-ft (all kept "
        "weights); or lora, which is dense and is written beside the model, for it cannot be merged.",
        among=("sparse-lora", "lora", "ste", "masked-ft"),
    )
    parts: str = setting("vision,connector,language", "Whose pruned linears are trained, with commas between them.")
    rank: int | None = setting(None, "Rank of the updates. [32; paper: by part]")
    vision_rank: int | None = setting(None, "The same for vision alone. [paper 4]")
    connector_rank: int | None = setting(
        None,
        "The same for the connector, which then gets updates, pruned or not, and is not trained whole. [paper 2]",
    )
    language_rank: int | None = setting(None, "The same for language alone. [paper 8]")
    alpha: float | None = setting(None, "The update is scaled by alpha / rank. [64; paper 16]", above=0)
    vision_alpha: float | None = setting(None, "The same for vision alone.", above=0)
    connector_alpha: float | None = setting(None, "The same for the connector alone.", above=0)
    language_alpha: float | None = setting(None, "The same for language alone.", above=0)
    dropout: float = setting(0.0, "Share of inputs that an update does not see at a step.", least=0, most=0.99)
    objective: str = setting(
        "ressa",
        "Where what is not told comes from: ressa, or paper: loss, schedule and ranks as RESSA released them.",
        among=("ressa", "paper"),
    )
    kl_weight: float | None = setting(
        None, "a in (1 - a) * cross-entropy + a * KL(dense || sparse). [0.5; paper 0.1]", least=0, most=1
    )
    temperature: float | None = setting(None, "Of the KL, which is scaled by its square. [2; paper 1]", above=0)
    hidden_weight: float | None = setting(
        None,
        "Of the distance of every block's output from the dense one's (SquareHead), added to the loss. [100; paper 0]",
        least=0,
    )
    connector_weight: float | None = setting(
        None, "Of the same distance of what the connector hands to language. [as hidden_weight]", least=0
    )
    train_norms: bool | None = setting(None, "Train the norms too. [yes; paper no]")
    train_biases: bool | None = setting(None, "Train the biases of pruned linears too. [yes; paper no]")
    train_connector: bool | None = setting(
        None, "Train the connector too, whole, where it is not pruned: no better in any trial. [no]"
    )
    reconstruct: int = setting(
        0, "Passes in which each block by itself is first trained towards the dense one's outputs.", least=0
    )
    reconstruct_lr: float = setting(3e-4, "Peak learning rate of reconstruction.", above=0)
    teacher_device: str | None = setting(None, "Where the dense model runs. [beside the student]")
    teacher_cache: str | None = setting(
        None,
        "A folder for what the dense model says: written once, read by every run on the same records, none of which "
        "then holds the dense model in memory.",
    )
    top_k: int = setting(64, "How many of the likeliest words the cache keeps at each place of an answer.")
    bf16: bool = setting(False, "The same as --dtype bfloat16, by its name in Trainer.")
    gradient_checkpointing: bool | None = setting(
        None, "Compute blocks again in the backward pass: less memory, more time. [where memory is short]"
    )
    micro_batch: int | None = setting(
        None,
        "Records of a batch that run together; the step is that of the whole batch. [all; fewer where memory is short]",
    )
    optim: str | None = setting(
        None,
        "The optimiser, by Trainer's name for it; 8-bit and paged ones need bitsandbytes. [Trainer's AdamW]",
        among=("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    )
    checkpoint_every: int = setting(100, "Steps between two checkpoints, from which a stopped run goes on.")
    report_to: str = setting("none", "Where losses go, as Trainer names them: tensorboard, wandb, ... [nowhere]")

    def __post_init__(self) -> None:
        """Checked before anything is read: what cannot be, and what would have no effect."""
        check(self, "repair")
        whole = self.complete
        for wrong, why in (
            (self.steps == 0 and not self.reconstruct, "steps is 0, which leaves nothing to do without reconstruct"),
            (
                self.teacher_cache and self.paper,
                "the paper's KL counts padding too, which no cache of the teacher can hold",
            ),
            (
                self.teacher_cache and self.steps == 0,
                "reconstruction reads no cache of the teacher: leave teacher_cache out, or train",
            ),
            (
                self.micro_batch and self.batch_size % self.micro_batch,
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}",
            ),
            (
                self.paper and self.micro_batch not in (None, self.batch_size),
                "the paper's KL counts padding, which depends on the batch: leave micro_batch out",
            ),
            *(
                (getattr(self, name) and not whole.needs_teacher, f"no loss looks at the dense model: leave {name} out")
                for name in ("teacher_device", "teacher_cache")
            ),
            *(
                (
                    self.adapter == "masked-ft" and getattr(self, name),
                    f"masked-ft trains the weights themselves, without updates: leave {name} out",
                )
                for name in UPDATES
            ),
        ):
            if wrong:
                raise RessaError(f"repair: {why}")
        self._check_names()

    def _check_names(self) -> None:
        import torch  # only when there is something to check

        from ressa.model.structure import PARTS

        for part in self.trained_parts:
            if part not in PARTS:
                raise unknown("part", part, PARTS)
        if self.teacher_device is not None:
            try:
                torch.device(self.teacher_device)
            except RuntimeError:
                raise RessaError(
                    f"repair: teacher_device '{self.teacher_device}' is no device, as cpu and cuda:1 are"
                ) from None

    @property
    def complete(self) -> Repair:
        """The same with the objective's defaults for what is None; a rank for all parts beats the objective's own."""
        defaults = dict(OBJECTIVES[self.objective])
        if self.rank is not None:
            defaults = {name: value for name, value in defaults.items() if not name.endswith("_rank")}
        if self.adapter == "masked-ft":
            defaults["lr"] = min(defaults["lr"], MASKED_LR)
        whole = copy.copy(self)  # is not checked again: what nobody asked for may well have no effect
        for name in (name for name in defaults if getattr(self, name) is None):
            object.__setattr__(whole, name, defaults[name])
        if whole.connector_weight is None:
            object.__setattr__(whole, "connector_weight", whole.hidden_weight)
        return whole

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide what comes out."""
        return {name: value for name, value in asdict(self).items() if name not in IDLE}

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Whose pruned linears are trained."""
        return tuple(part.strip() for part in self.parts.split(",") if part.strip())

    @property
    def paper(self) -> bool:
        return self.objective == "paper"

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss looks at the dense model."""
        return bool(self.kl_weight or self.hidden_weight or self.connector_weight)

    def of(self, part: str) -> tuple[int, float]:
        """(rank, alpha) of a part's updates; of complete settings."""
        rank, alpha = getattr(self, f"{part}_rank"), getattr(self, f"{part}_alpha")
        assert self.rank is not None
        assert self.alpha is not None
        return rank or self.rank, alpha or self.alpha
