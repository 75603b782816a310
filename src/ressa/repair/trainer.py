"""Training by transformers' Trainer: its optimiser, schedule, clipping, seeds, autocast and checkpoints; our loss.

Only the loss and what a checkpoint holds are ours: a checkpoint has the trained parameters, a few percent of the model.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ressa.calibration.outputs import outputs_of
from ressa.errors import RessaError
from ressa.model.structure import structure
from ressa.repair.distill import IGNORE, adaptation_loss, answer_kl, decoder_inputs, logits_at, paper_kl, targets
from ressa.repair.hidden import hidden_loss

WEIGHTS = "trained.safetensors"
STATE = "trainer_state.json"  # Trainer's own name; the last file it writes into a checkpoint

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Objective:
    """The loss and how the model's labels are to be read; `crossing` is (start id, pad id) of an encoder-decoder."""

    kl_weight: float
    temperature: float
    paper: bool
    crossing: tuple[int, int] | None

    def __call__(self, student: nn.Module, teacher: Callable[..., Tensor] | None, batch: dict[str, Any]) -> Tensor:
        """The loss of one batch with `labels`; `teacher(inputs, positions)` gives the dense logits."""
        inputs = dict(batch)
        labels_BT = inputs.pop("labels")
        if self.crossing:
            inputs["decoder_input_ids"] = decoder_inputs(labels_BT, *self.crossing)
        targets_BT = targets(labels_BT, encoder_decoder=self.crossing is not None)
        positions_BT = torch.ones_like(targets_BT, dtype=torch.bool) if self.paper else targets_BT != IGNORE
        teacher_NV = teacher(inputs, positions_BT) if teacher else None
        student_NV = logits_at(student, inputs, positions_BT)
        kl = functools.partial(answer_kl, temperature=self.temperature)
        if self.paper:
            kl = functools.partial(paper_kl, batch=len(labels_BT), temperature=self.temperature)
        return adaptation_loss(student_NV, teacher_NV, targets_BT[positions_BT], kl_weight=self.kl_weight, kl=kl)


class Adaptation(Trainer):
    """A Trainer whose loss is an `Objective` and whose checkpoints hold the trained parameters only."""

    objective: Objective
    teacher: nn.Module | None

    def __init__(
        self, *, objective: Objective, teacher: nn.Module | None, hidden_weight: float = 0.0, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.objective, self.hidden_weight = objective, hidden_weight
        self.teacher = teacher.to(self.args.device) if teacher is not None else None
        parts, self.config = ("vision", "language"), settings["model"].config
        distilled = self.teacher is not None and hidden_weight
        self.blocks = structure(settings["model"]).blocks(parts) if distilled else []
        self.dense_blocks = structure(cast(PreTrainedModel, self.teacher)).blocks(parts) if distilled else []
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        with outputs_of(self.blocks) as ours, outputs_of(self.dense_blocks) as theirs:
            loss = self.objective(model, self._dense_logits if self.teacher is not None else None, inputs)
        if self.blocks:
            far = hidden_loss(ours, theirs, self.blocks, inputs, self.config)
            loss = loss + self.hidden_weight * far
        return (loss, None) if return_outputs else loss

    def _dense_logits(self, inputs: dict[str, Any], positions_BT: Tensor) -> Tensor:
        """The teacher's logits at the positions, (N, V), under the student's autocast and without any graph."""
        assert self.teacher is not None
        with torch.inference_mode(), torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            return logits_at(self.teacher, inputs, positions_BT)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in _trained(self.model).items()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved, own = load_file(Path(resume_from_checkpoint, WEIGHTS)), _trained(model or self.model)
        if saved.keys() != own.keys():
            raise RessaError(f"{resume_from_checkpoint} is of another model: remove its folder to begin anew")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])


def _trained(model: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Report(TrainerCallback):
    """Tells `progress(done, total, what)` after every step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps, "repair")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps, "repair")


def arguments(
    folder: Path, *, steps: int, batch_size: int, lr: float, warmup: float, seed: int, bf16: bool, checkpoint_every: int
) -> TrainingArguments:
    """AdamW, cosine per step down to 0 after `warmup` (a share of the steps), gradient norm at most 1, no output."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=warmup,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        data_seed=seed,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        save_steps=checkpoint_every,
        save_total_limit=1,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])):
        try:
            json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # killed while writing it
        return checkpoint
    return None
