"""The stages of one `repair`: the teacher's cache, reconstruction, training; each is gone on with where it stopped."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ressa.calibration.logits import decoder_token_ids
from ressa.calibration.rehearsal import rehearse
from ressa.calibration.resume import begin, digest_of, work_path
from ressa.calibration.samples import samples as batches_of
from ressa.data.prompts import encode
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.files.folders import writing
from ressa.files.paths import path_of
from ressa.machine import AUTO, Machine, check_machine, decide, found
from ressa.model.load import load, machine_for
from ressa.repairing.reconstruct import Passes, reconstruct
from ressa.repairing.settings import Repair
from ressa.repairing.student import Student
from ressa.repairing.teacher import Cache, Teacher, model_hash, open_cache, write_cache
from ressa.repairing.trainer import CACHED, Adaptation, Objective, Report, arguments, last_checkpoint
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
        check_machine(runtime)
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

    def objective(self, config: Any) -> Objective:
        settings = self.settings
        assert settings.kl_weight is not None
        assert settings.temperature is not None
        return Objective(settings.kl_weight, settings.temperature, settings.paper, decoder_token_ids(config))

    def live(self, model: PreTrainedModel, device: Any, compute: torch.dtype) -> Teacher:
        hidden, connector = bool(self.settings.hidden_weight), bool(self.settings.connector_weight)
        return Teacher(model, device, hidden=hidden, connector=connector, bf16=compute == torch.bfloat16)

    def cache(self) -> Cache | None:
        """The teacher's cache, if one is asked for, written if it is not there yet; before the student is loaded."""
        settings = self.settings
        if settings.teacher_cache is None or not settings.needs_teacher or settings.steps == 0:
            return None
        assert settings.temperature is not None
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
            model, processor = load(self.teacher)
            rehearse(model, processor, self.records)
            chosen = self.where.machine(model)
            live = self.live(model, settings.teacher_device or chosen.device, chosen.compute)
            asking = self.objective(model.config).asking
            sizes: dict[str, Any] = {"top_k": settings.top_k, "temperature": settings.temperature}
            sizes |= {"batch_size": settings.batch_size, "progress": self.progress}
            write_cache(folder, identity, live, processor, self.records, asking, **sizes)
            del model, live, asking
            gc.collect()
        self.processes.wait_for_everyone()
        return open_cache(folder, identity)

    def work_folder(self, out: Path, identity: dict[str, Any]) -> Path:
        """The hidden folder beside `out` for checkpoints; the first process makes it."""
        work = work_path(out, "train")
        if self.processes.is_main_process:
            begin(work, identity)
        self.processes.wait_for_everyone()
        return work

    @staticmethod
    def begun(work: Path) -> bool:
        """Whether there is something to go on from."""
        return last_checkpoint(work) is not None or (work / RECONSTRUCTED).is_file()

    def reconstructed(
        self, model: PreTrainedModel, processor: Any, matrices: dict[str, Any], work: Path, chosen: Machine
    ) -> dict[str, Any]:
        """Reconstruct the blocks of `model` in place, if asked for; what the manifest says of it."""
        model.float()
        settings, file = self.settings, work / RECONSTRUCTED
        if not settings.reconstruct:
            return {}
        if not file.is_file() and self.processes.is_main_process:
            size, seed = settings.batch_size, settings.seed
            batches = batches_of(self.records, processor, model.config, len(self.records), batch_size=size, seed=seed)
            passes = Passes(settings.reconstruct, settings.reconstruct_lr, seed)
            trained = [name for name, entry in matrices.items() if entry["part"] in settings.trained_parts]
            dense = load(self.teacher)[0].float()
            where: dict[str, Any] = {"device": chosen.block_device, "progress": self.progress}
            far = reconstruct(model, dense, batches, trained, passes, **where)
            del dense
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
        with safe_open(file, framework="pt") as told:
            return {"reconstructed": json.loads(told.metadata()["far"])}

    def train(
        self,
        student: Student,
        processor: Any,
        cache: Cache | None,
        work: Path,
        chosen: Machine,
    ) -> dict[str, Any]:
        """Train in place, going on from the last checkpoint in `work` if there is one; what the manifest says."""
        settings, config = self.settings, student.model.config
        untouched = dict(vars(config))
        at_once = settings.batch_size * settings.accumulate * self.processes.num_processes
        steps = settings.steps or -(-len(self.records) // at_once)
        if chosen.device.type == "cpu":
            student.model.set_attn_implementation("eager")  # on a CPU the backward of fused attention takes far longer
        if settings.gradient_checkpointing:
            net: Any = student.model  # transformers is renaming it
            getattr(net, "activation_checkpointing_enable", net.gradient_checkpointing_enable)()
        args = arguments(work, settings, steps, chosen)
        live = settings.needs_teacher and cache is None

        def collate(chosen: list[tuple[int, Record]]) -> dict[str, Any]:
            batch: dict[str, Any] = encode(processor, [record for _, record in chosen], config, answers=True)
            return batch | ({CACHED: cache([index for index, _ in chosen])} if cache else {})

        trainer = Adaptation(
            model=student.model,
            teacher=self.live(load(self.teacher)[0], settings.teacher_device or args.device, chosen.compute)
            if live
            else None,
            objective=self.objective(config),
            settings=settings,
            args=args,
            train_dataset=list(enumerate(self.records)),
            data_collator=collate,
            callbacks=[Report(self.progress)] if self.progress else None,
        )
        if self.processes.num_processes > 1:
            trainer.freeze_unreached(collate(list(enumerate(self.records))[: settings.batch_size]))
        checkpoint = last_checkpoint(work)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        vars(config).clear()
        vars(config).update(untouched)  # Trainer turns use_cache off there, and the folder would keep it
        keys = {"step": "step", "loss": "loss", "learning_rate": "lr"}
        history = [{keys[k]: v for k, v in e.items() if k in keys} for e in trainer.state.log_history if "loss" in e]
        told: dict[str, Any] = {"steps": steps, "samples": len(self.records), "processes": self.processes.num_processes}
        return told | {"trained_parameters": student.trained, "history": history}
