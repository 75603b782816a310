"""The stages of one `repair`: the teacher's cache, reconstruction, training; each is gone on with where it stopped."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainingArguments, set_seed

from ressa.calibration.logits import decoder_token_ids
from ressa.calibration.rehearsal import rehearse
from ressa.calibration.resume import begin, digest_of, work_path
from ressa.calibration.samples import samples as batches_of
from ressa.costs.repairing import Way
from ressa.costs.shapes import WIDE, Sizes, sizes_of
from ressa.data.prompts import encode
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.files.folders import writing
from ressa.files.paths import path_of
from ressa.machine import AUTO, Machine, check_machine, decide, found
from ressa.model.load import load, machine_for
from ressa.model.structure import Structure, same_blocks, structure
from ressa.repairing.hidden import distances
from ressa.repairing.memory import Fitted, asked_for, check_disk, fit, here, note, noted, workload
from ressa.repairing.objective import Objective
from ressa.repairing.recompute import recomputed
from ressa.repairing.reconstruct import Passes, reconstruct, reconstructed_blocks
from ressa.repairing.settings import Repair
from ressa.repairing.student import Student, wrap
from ressa.repairing.teacher import Cache, Recorder, Teacher, model_hash, open_cache, write_cache
from ressa.repairing.trainer import RECORDS, Adaptation, Report, arguments, gathered, last_checkpoint, put_back
from ressa.settings import Progress, Runtime

RECONSTRUCTED = "reconstructed.safetensors"


@dataclass(frozen=True)
class Where:
    """The device and dtype that `repair` is asked for, and what becomes of them for a model."""

    device: str
    dtype: str

    @classmethod
    def of(cls, settings: Repair, runtime: Runtime) -> Where:
        """Raises RessaError for two dtypes, one that would need its losses scaled, and a GPU other than the first."""
        if settings.bf16 and runtime.dtype not in (AUTO, "bfloat16"):
            raise RessaError(f"repair: bf16 and dtype {runtime.dtype} contradict each other; leave bf16 out")
        if runtime.dtype == "float16":
            raise RessaError("repair: dtype float16 would need its losses scaled; take bfloat16 or float32")
        kind, _, number = runtime.device.partition(":")
        if number not in ("", "0"):
            raise RessaError(
                f"repair: trains on the first {kind} device it sees, not on {runtime.device}: hide the others "
                f"(CUDA_VISIBLE_DEVICES={number}) and leave the number out"
            )
        check_machine(**asdict(runtime))
        return cls(runtime.device, "bfloat16" if settings.bf16 else runtime.dtype)

    @property
    def on_cpu(self) -> bool:
        return decide(self.device, self.dtype, torch.float32, found())[0] == "cpu"

    def machine(self, model: PreTrainedModel) -> Machine:
        """Half precision trains in bfloat16 where that is native, else in float32."""
        chosen = machine_for(model, self.device, self.dtype)
        if chosen.compute != torch.float16:
            return chosen
        native = chosen.device.type in found().native_bf16
        return replace(chosen, compute=torch.bfloat16 if native else torch.float32)


@dataclass(frozen=True)
class Run:
    """One call of `repair`: what its stages share."""

    settings: Repair
    where: Where
    teacher: str | Path
    records: list[Record]
    processes: PartialState
    progress: Progress | None

    def objective(self, model: PreTrainedModel, parts: Structure) -> Objective:
        """The losses of a model of that structure, whose linears may have adapters in their places."""
        settings = self.settings
        assert settings.kl_weight is not None
        assert settings.temperature is not None
        wanted = [(weight, same_blocks(blocks, model)) for weight, blocks in distances(settings, parts)]
        ids = decoder_token_ids(model.config)
        return Objective(settings.kl_weight, settings.temperature, settings.paper, ids, wanted)

    def cache(self) -> Cache | None:
        """The teacher's cache, if one is asked for, written if it is not there yet; before the student is loaded."""
        settings = self.settings
        if settings.teacher_cache is None or not settings.needs_teacher or settings.steps == 0:
            return None
        identity = {
            "teacher": model_hash(self.teacher),
            "data": digest_of(self.records),
            "top_k": settings.top_k,
            "temperature": settings.temperature,
            "hidden states": bool(settings.hidden_weight),
            "connector": bool(settings.connector_weight),
        }
        folder = path_of(settings.teacher_cache, "the teacher's cache")
        cache = open_cache(folder, identity)
        if cache is None and self.processes.is_main_process:
            size, progress = settings.batch_size, self.progress
            recorder = self._recorder(folder)
            write_cache(folder, identity, recorder, self.records, batch_size=size, progress=progress)
            gc.collect()
        self.processes.wait_for_everyone()
        return open_cache(folder, identity)

    def _recorder(self, folder: Path) -> Recorder:
        settings, (model, processor) = self.settings, load(self.teacher)
        rehearse(model, processor, self.records)
        parts = structure(model)
        check_disk(folder, settings, parts, processor, model.config, self.records)
        chosen, objective = self.where.machine(model), self.objective(model, parts)
        bf16 = chosen.compute == torch.bfloat16
        teacher = Teacher(model, settings.teacher_device or chosen.device, objective.blocks, bf16=bf16)
        return Recorder(teacher, processor, objective.asking, settings.top_k, objective.temperature)

    @contextmanager
    def work_folder(self, out: Path, identity: dict[str, Any]) -> Iterator[Path]:
        """The hidden folder beside `out` for checkpoints; the first process makes it, and removes it if the run is
        stopped before there is anything to go on from."""
        work = work_path(out, "train")
        if self.processes.is_main_process:
            begin(work, identity)
        self.processes.wait_for_everyone()
        try:
            yield work
        finally:
            begun = last_checkpoint(work) is not None or (work / RECONSTRUCTED).is_file()
            if self.processes.is_main_process and not begun:
                shutil.rmtree(work, ignore_errors=True)

    def carry_out(
        self, student: Student, processor: Any, cache: Cache | None, work: Path, chosen: Machine
    ) -> tuple[Student, dict[str, Any]]:
        """Reconstruction, adapters and training, as far as they are asked for; what the manifest says of them."""
        log = {"machine": chosen.describe()} | self.reconstructed(student, processor, work, chosen)
        if self.settings.steps == 0:
            return student, log
        sizes = sizes_of(student.model, student.structure, chosen.stored.itemsize)  # before there are adapters
        set_seed(self.settings.seed)  # A of every adapter is drawn
        student = wrap(student, self.settings, chosen.compute)
        found = self._fitted(student, sizes, processor, work, chosen, cached=cache is not None)
        return student, log | found.told | self.train(student, processor, cache, work, chosen, found.way)

    def whole(self, student: Student, fresh: Student, processor: Any, work: Path, chosen: Machine) -> Student:
        """A student that every process held a part of, whole: `fresh`, as it was loaded, with what was trained."""
        trained = gathered(student.model)  # in which every process takes part
        self.reconstructed(fresh, processor, work, chosen)
        whole = wrap(fresh, self.settings, chosen.compute)
        put_back({name: p for name, p in whole.model.named_parameters() if name in trained}, trained)
        return whole

    def _fitted(
        self, student: Student, sizes: Sizes, processor: Any, work: Path, chosen: Machine, *, cached: bool
    ) -> Fitted:
        """How a step is carried out, as the first process finds it, or found it before the run was stopped."""
        if self.processes.is_main_process:
            asked = asked_for(self.settings, chosen, cached=cached)
            load = workload(self.settings, processor, student.model.config, self.records)
            there = here(sizes, chosen, self.processes.num_processes)
            found = fit(sizes, load, asked, student, self.settings, there)
            note(work, found)
        self.processes.wait_for_everyone()
        return noted(work)

    def reconstructed(self, student: Student, processor: Any, work: Path, chosen: Machine) -> dict[str, Any]:
        """Reconstruct the blocks of the student in place, if asked for; what the manifest says of it."""
        if not self.settings.reconstruct:
            return {}
        model, file = student.model.float(), work / RECONSTRUCTED
        if not file.is_file() and self.processes.is_main_process:
            far = self._reconstruct(student, processor, chosen)
            partial = file.with_suffix(".partial")
            weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
            with writing(file):
                save_file(weights, partial, {"far": json.dumps(far)})
                partial.replace(file)
        self.processes.wait_for_everyone()
        saved = load_file(file)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(saved[name])
        with safe_open(file, framework="pt") as opened:
            return {"reconstructed": json.loads(opened.metadata()["far"])}

    def _reconstruct(self, student: Student, processor: Any, chosen: Machine) -> dict[str, tuple[float, float]]:
        settings, model = self.settings, student.model
        size, seed = settings.batch_size, settings.seed
        batches = batches_of(self.records, processor, model.config, len(self.records), batch_size=size, seed=seed)
        trained = [name for name, entry in student.matrices.items() if entry["part"] in settings.trained_parts]
        blocks = reconstructed_blocks(student.structure, trained)
        passes = Passes(settings.reconstruct, settings.reconstruct_lr, seed)
        where: dict[str, Any] = {"device": chosen.block_device, "progress": self.progress}
        return reconstruct(model, load(self.teacher)[0].float(), blocks, batches, passes, **where)

    def train(
        self, student: Student, processor: Any, cache: Cache | None, work: Path, chosen: Machine, way: Way
    ) -> dict[str, Any]:
        """Train in place, going on from the last checkpoint in `work` if there is one; what the manifest says."""
        config, samples, world = student.model.config, len(self.records), self.processes.num_processes
        untouched = dict(vars(config))
        steps = self.settings.steps or -(-samples // (self.settings.batch_size * self.settings.accumulate * world))
        if chosen.device.type == "cpu":
            student.model.set_attn_implementation("eager")  # the backward of fused attention takes far longer there
        args = arguments(work, self.settings, steps, chosen, way.pieces)
        trainer = self._trainer(student, processor, cache, args, way)
        checkpoint, blocks = last_checkpoint(work), student.structure.blocks()
        with recomputed(blocks if way.recompute else (), student.model):
            if world > 1 and not trainer.is_fsdp_enabled:
                first: Any = list(enumerate(self.records[: args.per_device_train_batch_size]))
                trainer.freeze_unreached(trainer.data_collator(first))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        vars(config).clear()
        vars(config).update(untouched)  # Trainer turns use_cache off there, and the folder would keep it
        keys = {"step": "step", "loss": "loss", "learning_rate": "lr"}
        history = [{keys[k]: v for k, v in e.items() if k in keys} for e in trainer.state.log_history if "loss" in e]
        counts = {"steps": steps, "samples": samples, "processes": world, "trained_parameters": student.trained}
        return counts | {"history": history}

    def _trainer(
        self, student: Student, processor: Any, cache: Cache | None, args: TrainingArguments, way: Way
    ) -> Adaptation:
        settings, config = self.settings, student.model.config
        objective = self.objective(student.model, student.structure)
        teacher: Teacher | Cache | None = cache
        if settings.needs_teacher and cache is None:
            dense, device = load(self.teacher)[0], settings.teacher_device or args.device
            teacher = Teacher(dense, device, objective.blocks, bf16=way.width < WIDE)

        def collate(chosen: list[tuple[int, Record]]) -> dict[str, Any]:
            batch: dict[str, Any] = encode(processor, [record for _, record in chosen], config, answers=True)
            return batch | {RECORDS: torch.tensor([index for index, _ in chosen])}

        return Adaptation(
            model=student.model,
            teacher=teacher,
            objective=objective,
            settings=settings,
            way=way,
            args=args,
            train_dataset=list(enumerate(self.records)),
            data_collator=collate,
            callbacks=[Report(self.progress)] if self.progress else None,
        )
