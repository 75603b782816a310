"""Training by transformers' Trainer: its optimiser, schedule, clipping, seeds, autocast and checkpoints; our loss.

Only the loss and what a checkpoint holds are ours: a checkpoint has the trained parameters, a few percent of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ressa.calibration.logits import logits_at
from ressa.calibration.tokens import token_weights
from ressa.costs.repairing import Way
from ressa.costs.shapes import WIDE
from ressa.errors import RessaError, unknown
from ressa.files.folders import writing
from ressa.machine import Machine
from ressa.repairing.hidden import distances_taken, hidden_loss, sizes
from ressa.repairing.objective import Objective
from ressa.repairing.settings import Repair
from ressa.repairing.teacher import Cache, Teacher, TeacherOutput
from ressa.settings import Progress

WEIGHTS = "trained.safetensors"
LOGS = "TENSORBOARD_LOGGING_DIR"
STATE = "trainer_state.json"  # Trainer's own name; the last file it writes into a checkpoint
RECORDS = "records"  # key of a batch under which the numbers of its records come


class Adaptation(Trainer):
    """A Trainer with the losses of repair, whose checkpoints hold the trained parameters only.

    The mean of the losses of several processes is the loss of all their batches together: token sums are divided by
    the tokens of all of them, and so are distances of blocks. Over accumulated batches the latter are averaged. The
    `pieces` of one batch are accumulated too, but are one batch: the teacher is asked about them twice, first for what
    all their distances are divided by.
    """

    objective: Objective
    teacher: Teacher | Cache | None

    def __init__(
        self, *, objective: Objective, teacher: Teacher | Cache | None, settings: Repair, way: Way, **more: Any
    ) -> None:
        super().__init__(**more)
        self.pieces = way.pieces
        self.bf16 = way.width < WIDE  # by autocast of our own: accelerate's would have FSDP train in bfloat16
        self.wholes: Iterator[list[Tensor]] = iter(())
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
        records = batch.pop(RECORDS)
        asked, positions_BT = self.objective.asking(batch)
        dense = self._dense(records, asked, positions_BT)
        weights = token_weights(batch, self.config)
        autocast = torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.bf16)
        with distances_taken(self.objective.blocks, dense.outputs, weights) as taken, autocast:
            student_NV = logits_at(model, asked, positions_BT)
        parts, count = getattr(self, "current_gradient_accumulation_steps", 1), None
        if num_items_in_batch is not None and not self.objective.paper:
            count = num_items_in_batch / self.args.world_size
        loss = self.objective.loss(student_NV, dense, batch, positions_BT, count) / (1 if count is not None else parts)
        batches, wholes = -(-parts // self.pieces), next(self.wholes, None)
        for i, (weight, blocks) in enumerate(self.objective.distances):
            whole_N = wholes[i] if wholes else None
            loss = loss + weight * hidden_loss(taken, blocks, whole_N, self._mean_of_processes) / batches
        return (loss, None) if return_outputs else loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As Trainer does; and where batches come in pieces, what the distances of each whole one are divided by."""
        parts, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.pieces > 1 and self.objective.distances:
            groups = [parts[at : at + self.pieces] for at in range(0, len(parts), self.pieces)]
            self.wholes = iter([whole for group in groups for whole in [self._sizes(group)] * len(group)])
        return parts, count

    def _sizes(self, parts: list[dict[str, Any]]) -> list[Tensor]:
        """|teacher|² of every block, over all parts of a batch and the mean of all processes, for every distance."""
        found = [torch.zeros((), device=self.args.device) for _ in self.objective.distances]
        for part in parts:
            batch = dict(self._prepare_inputs(part))
            dense = self._dense(batch.pop(RECORDS), *self.objective.asking(batch))
            weights = token_weights(batch, self.config)
            for i, (_, blocks) in enumerate(self.objective.distances):
                found[i] = found[i] + sizes(blocks, dense.outputs, weights).to(found[i].device)
        return [self._mean_of_processes(size_N) for size_N in found]

    def _dense(self, records: Tensor, asked: dict[str, Any], positions_BT: Tensor) -> TeacherOutput:
        """What the dense model says of the batch of these `records`; nothing if no loss looks at it."""
        if isinstance(self.teacher, Cache):
            return self.teacher(records.tolist(), positions_BT.device)
        return self.teacher(asked, positions_BT) if self.teacher else TeacherOutput()

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        weights = gathered(self.model)  # in which every process takes part
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved, own = load_file(Path(resume_from_checkpoint, WEIGHTS)), _trained(model or self.model)
        if saved.keys() != own.keys():
            raise RessaError(f"{resume_from_checkpoint} is of another model: remove its folder to begin anew")
        put_back(own, saved)


def _trained(model: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def sharded(model: Any) -> bool:
    """Whether each process holds a part of every parameter."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gathered(model: Any) -> dict[str, Tensor]:
    """What is trained, whole, in every process."""
    wholes = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in _trained(model).items()}
    return {name: whole.detach().contiguous() for name, whole in wholes.items()}


@torch.no_grad()
def put_back(parameters: Mapping[str, nn.Parameter], wholes: Mapping[str, Tensor]) -> None:
    """Give parameters, which may be sharded, the values of `wholes`."""
    for name, parameter in parameters.items():
        whole = wholes[name]
        if isinstance(parameter, DTensor):
            whole = distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)
        parameter.copy_(whole)


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


def arguments(folder: Path, settings: Repair, steps: int, chosen: Machine, pieces: int = 1) -> TrainingArguments:
    """AdamW without weight decay; cosine per step down to 0 after `warmup` (a share of the steps); nothing printed.

    Args:
        pieces: so many times fewer records at a time, and so many times as often before a step.
    """
    assert settings.lr is not None
    assert settings.warmup is not None
    assert settings.clip is not None
    named: dict[str, Any] = {} if settings.optim is None else {"optim": settings.optim}
    made = TrainingArguments(
        **named,
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size // pieces,
        gradient_accumulation_steps=settings.accumulate * pieces,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=0.0,
        max_grad_norm=settings.clip,
        seed=settings.seed,
        data_seed=settings.seed,
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


def check_optim(name: str | None) -> None:
    """Raises RessaError for an optimiser whose package is not there."""
    if name is not None and "adamw_torch" not in name and find_spec("bitsandbytes") is None:
        raise RessaError(f"optim {name}: bitsandbytes is not installed: pip install bitsandbytes")


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
