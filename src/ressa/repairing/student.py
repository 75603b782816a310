"""The pruned model as a student: which of its parameters are trained, and how it becomes an ordinary model again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from ressa.errors import RessaError
from ressa.families import QFORMER
from ressa.model.folder import PRUNED_FROM, patterns_of
from ressa.model.matrix import Convolution, fused, holder, is_norm
from ressa.model.precision import cast_back, dtypes_of, parameters_of, widened
from ressa.model.structure import Structure, structure
from ressa.patterns import NofM
from ressa.repairing.masked_finetune import kept, put
from ressa.repairing.settings import Repair
from ressa.repairing.sparse_lora import SparseLoraConfig, SparseLoraModel


@dataclass(frozen=True)
class Student:
    """A pruned model and, once adapters are put, which of its parameters are trained.

    `matrices` are the pruned ones, whose zeros are to stay, as ressa.json tells of them; `dtypes` are those that all
    tensors came in; `adapted` are the modules that the adapter trains; `tuner` is peft's, where it is one of peft's;
    `rounded` are the matrices that stand in less than they are stored in.
    """

    model: PreTrainedModel
    structure: Structure
    matrices: dict[str, dict[str, Any]]
    dtypes: dict[str, torch.dtype]
    adapter: str = "none"
    tuner: BaseTuner | None = None
    adapted: tuple[str, ...] = ()
    rounded: Mapping[str, nn.Parameter] = field(default_factory=dict)

    @property
    def trained(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def student_of(model: PreTrainedModel, manifest: Mapping[str, Any]) -> Student:
    """A pruned model as it was loaded; what was pruned says its `manifest`, or the zeros of the weights tell.

    Raises:
        RessaError: an entry that the model contradicts, or nothing pruned at all.
    """
    modules = dict(model.named_modules())
    asked = any(isinstance(modules.get(name), Convolution) for name in manifest.get("matrices", {}))
    parts = structure(model, patch_embedding=asked)
    return Student(model, parts, _pruned_matrices(parts, manifest), dtypes_of(model))


def _pruned_matrices(parts: Structure, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    linears = {n: (block, linear) for block in parts.blocks() for n, linear in block.linears.items()}
    for name, pattern in patterns_of(manifest).items():
        if name not in linears or not pattern.holds(linears[name][1].weight):
            raise RessaError(
                f"ressa.json says that {name} is pruned to {pattern}, but it is not: prune the model again"
            )
    if matrices := manifest.get("matrices"):
        return matrices
    found = {name: _entry(block.part, linear.weight) for name, (block, linear) in linears.items()}
    pruned = {name: entry for name, entry in found.items() if entry["sparsity"] >= PRUNED_FROM}
    if not pruned:
        raise RessaError("nothing to repair: no linear of the model has zeros; name a folder that ressa prune wrote")
    return pruned


def _entry(part: str, weight_OI: torch.Tensor) -> dict[str, Any]:
    """A matrix as `prune` would have told of it: 2:4 if it holds, else the share of zeros it happens to have."""
    size = weight_OI.numel()
    zeros = size - int(torch.count_nonzero(weight_OI))
    pattern = {"pattern": "2:4"} if NofM(2, 4).holds(weight_OI) else {"pattern": repr(zeros / size), "group": "matrix"}
    sizes = {"shape": list(weight_OI.shape), "weights": size, "zeros": zeros, "sparsity": zeros / size}
    return {"part": part, **pattern, **sizes}


def wrap(student: Student, settings: Repair, products: torch.dtype = torch.float32) -> Student:
    """Put an adapter on every pruned linear of the chosen parts and let the other chosen parameters be trained as
    they are. A pruned patch embedding stays as it is.

    What is trained is float32: the updates of a bfloat16 norm or bias would mostly be rounded away.

    Args:
        settings: complete.
        products: what autocast computes them in; matrices that are not trained are then no wider.

    Raises:
        RessaError: nothing would be trained.
    """
    model = student.model
    part_of = _adapted(student, settings)
    others = _others(student, part_of, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # a pruned weight is trained through its adapter, or its zeros are lost
    masked = {id(parameter) for parameter in parameters_of(model, (*student.matrices, *part_of)).values()}
    model.requires_grad_(False)
    tuner = _put_adapter(model, part_of, settings)
    for parameter in (p for p in others if id(p) not in masked):
        parameter.requires_grad_(True)
    rounded = {names[id(p)]: p for p in widened(model, products)}
    wrapped = replace(student, adapter=settings.adapter, tuner=tuner, adapted=tuple(part_of), rounded=rounded)
    if not wrapped.trained:
        raise RessaError(
            f"nothing to train: no pruned linear in parts '{settings.parts}', and nothing else is asked for"
        )
    return wrapped


def _adapted(student: Student, settings: Repair) -> dict[str, str]:
    """{linear: its part} of all that get an adapter: pruned ones and, if it has a rank of its own, the connector.

    As RESSA released it, a Q-Former gets one, but no projection does. Fused experts get one together, in the name of
    their module, but no dense LoRA.
    """
    model = student.model
    found = {holder(model, name): entry["part"] for name, entry in student.matrices.items()}
    for name, part in list(found.items()):
        module = model.get_submodule(name)
        left_out = isinstance(module, Convolution) or (fused(module) and settings.adapter == "lora")
        if left_out or part not in settings.trained_parts:
            del found[name]
    if settings.connector_rank and "connector" in settings.trained_parts:
        for block in student.structure.blocks(("connector",)):
            if not settings.paper or QFORMER in block.name:
                found |= dict.fromkeys((holder(model, name) for name in block.linears), "connector")
    return found


def _others(student: Student, adapted: Iterable[str], settings: Repair) -> list[nn.Parameter]:
    """What is trained as it is: norms, biases of the `adapted` linears, the connector; as the settings say."""
    model, found = student.model, list[nn.Parameter]()
    if settings.train_norms:
        found += [p for module in model.modules() if is_norm(module) for p in module.parameters(recurse=False)]
    if settings.train_biases:
        biases = (getattr(model.get_submodule(name), "bias", None) for name in adapted)
        found += [bias for bias in biases if isinstance(bias, nn.Parameter)]
    part = student.structure.parts.get("connector")
    if part and settings.train_connector and not settings.connector_rank:
        for name in part.modules:  # which may name bare parameters, too
            found += [p for full, p in model.named_parameters() if full == name or full.startswith(f"{name}.")]
    return found


def _put_adapter(model: PreTrainedModel, part_of: Mapping[str, str], settings: Repair) -> BaseTuner | None:
    """Adapters on the named linears; peft's model around them, if it is peft that puts them there."""
    if settings.adapter == "masked-ft":
        for name in part_of:
            put(model, name, kept(model.get_submodule(name)))
        return None
    if not part_of:
        return None
    ranks = {name: settings.of(part)[0] for name, part in part_of.items()}
    alphas = {name: settings.of(part)[1] for name, part in part_of.items()}
    each: dict[str, Any] = {"rank_pattern": ranks, "alpha_pattern": alphas, "target_modules": list(part_of)}
    tuner: BaseTuner  # no PeftModel around it: Trainer knows the model as it is
    if settings.adapter == "lora":
        tuner = LoraModel(model, peft.LoraConfig(lora_dropout=settings.dropout, **each), "default")
    else:
        through = settings.adapter == "ste"
        config = SparseLoraConfig(dropout=settings.dropout, straight_through=through, **each)
        tuner = SparseLoraModel(model, config, "default")
    if set(tuner.targeted_module_names) != set(part_of):
        raise RuntimeError("peft adapted other linears than those that were named")
    return tuner


def unrounded(student: Student, stored: nn.Module) -> None:
    """Matrices that stood in less than they are stored in become again what `stored`, the pruned model, has."""
    for name, parameter in student.rounded.items():
        parameter.data = stored.get_parameter(name).data.to(parameter.device)


def merged(student: Student) -> tuple[PreTrainedModel, Callable[[Path], None] | None]:
    """(the merged model with every tensor in the dtype it came in and exactly the zeros it came with, None).

    A dense LoRA cannot be merged, for its update fills zeros: instead of None then what writes it into a folder.
    """
    if student.adapter == "lora" and student.tuner:
        return _part_from_lora(student)
    if student.adapter == "masked-ft":
        for name in student.adapted:
            module: Any = student.model.get_submodule(name)
            put(student.model, name, module.restored())
    elif student.tuner:
        student.tuner.merge_and_unload()
    return _as_it_came(student), None


def _part_from_lora(student: Student) -> tuple[PreTrainedModel, Callable[[Path], None]]:
    """(the model without its dense LoRA, what writes the LoRA into a folder as peft does)."""
    tuner: Any = student.tuner
    state = peft.get_peft_model_state_dict(student.model, adapter_name="default")
    config = student.model.peft_config["default"]
    tuner.unload()

    def write(folder: Path) -> None:
        config.inference_mode = True
        config.save_pretrained(folder)
        named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
        save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})

    return _as_it_came(student), write


def _as_it_came(student: Student) -> PreTrainedModel:
    """The model without adapters, its tensors in their dtypes, its zeros where they were."""
    model: Any = student.model
    if hasattr(model, "peft_config"):
        del model.peft_config
    cast_back(model, student.dtypes, (*student.matrices, *student.adapted))
    return model.requires_grad_(True).eval()
