"""Training by transformers' Trainer: its optimiser, schedule, clipping, seeds, autocast and checkpoints; our loss.

Only the loss and what a checkpoint holds are ours: a checkpoint has the trained parameters, a few percent of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ressa.calibration.logits import forced, logits_at
from ressa.calibration.outputs import outputs_of
from ressa.data.prompts import IGNORED
from ressa.errors import RessaError, unknown
from ressa.files.folders import writing
from ressa.machine import Machine
from ressa.model.structure import Block
from ressa.repairing.distill import answer_cross_entropy, answer_kl, paper_kl, top_kl
from ressa.repairing.hidden import Distances, hidden_loss
from ressa.repairing.settings import Repair
from ressa.repairing.teacher import Teacher, TeacherOutput, cached_output
from ressa.settings import Progress

WEIGHTS = "trained.safetensors"
LOGS = "TENSORBOARD_LOGGING_DIR"
STATE = "trainer_state.json"  # Trainer's own name; the last file it writes into a checkpoint
CACHED = "teacher"  # key of a batch under which the cache's tensors come


@dataclass(frozen=True)
class Objective:
    """The losses on logits, and how labels are read; `decoder_token_ids` are (start, pad) of an encoder-decoder.

    `(1 - kl_weight) * CE + kl_weight * KL`, or with `paper` the KL as RESSA released it, over all positions; and what
    `distances` weigh.
    """

    kl_weight: float
    temperature: float
    paper: bool
    decoder_token_ids: tuple[int, int] | None
    distances: Distances = ()

    @property
    def blocks(self) -> list[Block]:
        """Those whose outputs the distances are of."""
        return [block for _, blocks in self.distances for block in blocks]

    def asking(self, batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """A batch with `labels` -> what the forward takes, and the positions whose logits count, (B, T)."""
        inputs, targets_BT = forced(batch, self.decoder_token_ids)
        return inputs, torch.ones_like(targets_BT, dtype=torch.bool) if self.paper else targets_BT != IGNORED

    def loss(
        self,
        student_NV: Tensor,
        dense: TeacherOutput | None,
        batch: dict[str, Any],
        positions_BT: Tensor,
        count: Any = None,
    ) -> Tensor:
        """`count` is what token sums are divided by instead of the number of this batch's answer tokens."""
        targets_BT = forced(batch, self.decoder_token_ids)[1]
        loss = (1 - self.kl_weight) * answer_cross_entropy(student_NV, targets_BT[positions_BT], count)
        if dense is None or not self.kl_weight:
            return loss
        if dense.logits_NV is None:
            assert dense.top_NK is not None
            assert dense.words_NK is not None
            kl = top_kl(student_NV, dense.top_NK, dense.words_NK, self.temperature, count)
        elif self.paper:
            kl = paper_kl(student_NV, dense.logits_NV, len(positions_BT), self.temperature)
        else:
            kl = answer_kl(student_NV, dense.logits_NV, self.temperature, count)
        return loss + self.kl_weight * kl


class Adaptation(Trainer):
    """A Trainer with the losses of repair, whose checkpoints hold the trained parameters only.

    The mean of the losses of several processes is the loss of all their batches together: token sums are divided by
    the tokens of all of them, and so are distances of blocks. Over accumulated batches the latter are averaged.
    """

    objective: Objective
    teacher: Teacher | None

    def __init__(self, *, objective: Objective, teacher: Teacher | None, settings: Repair, **more: Any) -> None:
        super().__init__(**more)
        self.model_accepts_loss_kwargs = True  # so that the tokens of all accumulated batches are counted ...
        self._loss_shifts_labels = False  # ... all of them, in every architecture
        self.objective, self.teacher, self.settings = objective, teacher, settings
        self.config = more["model"].config
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        batch = dict(inputs)
        dense = cached_output(batch.pop(CACHED)) if CACHED in batch else None
        asked, positions_BT = self.objective.asking(batch)
        if dense is None and self.teacher is not None:
            dense = self.teacher(asked, positions_BT)
        with outputs_of(self.objective.blocks) as ours:
            student_NV = logits_at(model, asked, positions_BT)
        pieces, count = getattr(self, "current_gradient_accumulation_steps", 1), None
        if num_items_in_batch is not None and not self.objective.paper:
            count = num_items_in_batch / self.args.world_size
        loss = self.objective.loss(student_NV, dense, batch, positions_BT, count) / (1 if count is not None else pieces)
        for weight, blocks in self.objective.distances:
            assert dense is not None  # whose outputs they are from
            far = hidden_loss(ours, dense.outputs, blocks, batch, self.config, self._mean_of_processes)
            loss = loss + weight * far / pieces
        return (loss, None) if return_outputs else loss

    def _mean_of_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "mean") if self.args.world_size > 1 else values

    def freeze_unreached(self, batch: dict[str, Any]) -> None:
        """Leave out of training what no loss reaches (the norm behind a tower whose last block is not read).

        It would not change by training either; but DDP waits for a gradient of everything that is trained.
        """
        model = cast(nn.Module, self.model)
        model.to(self.args.device).train()
        self.compute_loss(model, self._prepare_inputs(batch)).backward()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Cosine down to 0 after the warm-up; or as RESSA released it: 1e-6 at the first step, then constant."""
        if not self.settings.paper or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        first = 1e-6 / max(self.args.learning_rate, 1e-6)
        self.lr_scheduler = LambdaLR(cast(Any, optimizer or self.optimizer), lambda step: 1.0 if step else first)
        return self.lr_scheduler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(Path(str(self.args.output_dir))):
            super()._save_checkpoint(model, trial)

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
    """Tells `progress(done, total, "repair")` after every step, and the loss as soon as there is one."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.loss = progress, ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f", loss {logs['loss']:.4g}"

    def _tell(self, state: Any) -> None:
        if state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps, f"repair{self.loss}")


def arguments(folder: Path, settings: Repair, steps: int, chosen: Machine) -> TrainingArguments:
    """AdamW without weight decay; cosine per step down to 0 after `warmup` (a share of the steps); nothing printed."""
    assert settings.lr is not None
    assert settings.warmup is not None
    assert settings.clip is not None
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=0.0,
        max_grad_norm=settings.clip,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=chosen.compute == torch.bfloat16,
        use_cpu=chosen.device.type == "cpu",
        ddp_find_unused_parameters=False,  # `freeze_unreached` leaves none, and DDP hears no blocks
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        save_steps=settings.checkpoint_every,
        save_total_limit=1,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=check_reports(settings.report_to),
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # DataParallel would run the student where no hook hears it; several GPUs: accelerate launch
    return made


def check_reports(report_to: str) -> list[str]:
    """The names in `report_to`. Raises RessaError for one that Trainer does not know, or whose package is not there."""
    names = [name.strip() for name in report_to.split(",")]
    for name in names:
        if name not in ("none", *INTEGRATION_TO_CALLBACK):
            raise unknown("report_to", name, ("none", *INTEGRATION_TO_CALLBACK))
        if name != "none" and name not in get_available_reporting_integrations():
            raise RessaError(f"report_to {name}: its package is not installed: pip install {name}")
    return names


@contextmanager
def logs_beside(out: Path) -> Iterator[None]:
    """TensorBoard's files lie in `out`.logs, unless the user says where: Trainer's own default is the folder of
    checkpoints, which goes. The variable is Trainer's only way to be told, and is put back for the next run."""
    if LOGS in os.environ:
        yield
        return
    os.environ[LOGS] = f"{out}.logs"
    try:
        yield
    finally:
        os.environ.pop(LOGS, None)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])):
        try:
            json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # killed while writing it
        return checkpoint
    return None
