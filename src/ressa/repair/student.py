"""The pruned model as a student: which of its parameters are trained, and how it becomes an ordinary model again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ressa.errors import RessaError
from ressa.model.folder import patterns_of
from ressa.model.matrix import Convolution
from ressa.model.structure import structure
from ressa.patterns import NofM
from ressa.repair.sparse_lora import SparseLoraConfig, SparseLoraLinear, SparseLoraModel, keep_kept

PRUNED_FROM = 0.05  # without a manifest, a linear with at least this share of zeros counts as pruned


@dataclass(frozen=True)
class Student:
    """A model in float32 with adapters on its pruned linears; `dtypes` are those its tensors came in."""

    tuner: SparseLoraModel
    pruned: tuple[str, ...]
    dtypes: dict[str, torch.dtype]

    @property
    def model(self) -> PreTrainedModel:
        """The model itself, with the adapters in it."""
        return self.tuner.model

    @property
    def trained(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def pruned_matrices(model: PreTrainedModel, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What was pruned, by the name of its linear: the entries of `manifest`, or what the zeros of the weights tell.

    Raises:
        RessaError: an entry that the model contradicts, or nothing pruned at all.
    """
    modules = dict(model.named_modules())
    asked = any(isinstance(modules.get(name), Convolution) for name in manifest.get("matrices", {}))
    plan = structure(model, patch_embedding=asked)
    linears = {n: (block, linear) for block in plan.blocks() for n, linear in block.linears.items()}
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


def wrap(
    model: PreTrainedModel,
    pruned: Collection[str],
    *,
    rank: int,
    alpha: float,
    norms: bool,
    biases: bool,
    connector: bool,
) -> Student:
    """Put an adapter on every pruned linear and let the other chosen parameters be trained as they are.

    A pruned patch embedding stays as it is. Everything is computed in float32: the updates of a bfloat16 norm or bias
    would mostly be rounded away.
    """
    dtypes = {name: tensor.dtype for name, tensor in _tensors(model)}
    model.float()
    modules = {name: model.get_submodule(name) for name in pruned}
    linears: dict[str, Any] = {name: module for name, module in modules.items() if not isinstance(module, Convolution)}
    others = [p for p in _norms(model) if norms]
    others += [m.bias for m in linears.values() if biases and isinstance(m.bias, nn.Parameter)]
    others += [p for p in _connector(model) if connector]
    masked = {id(linear.weight) for linear in linears.values()}  # trained through their adapter or their zeros are lost
    config = SparseLoraConfig(rank=rank, alpha=alpha, target_modules=list(linears))
    tuner = SparseLoraModel(model, config, "default")  # no PeftModel around it: Trainer knows the model as it is
    adapted = {name for name, module in model.named_modules() if isinstance(module, SparseLoraLinear)}
    if adapted != linears.keys():
        raise RuntimeError("peft adapted other linears than those that were named")
    for parameter in others:
        parameter.requires_grad_(id(parameter) not in masked)
    return Student(tuner, tuple(pruned), dtypes)


def unwrap(student: Student) -> PreTrainedModel:
    """The merged model with every tensor in the dtype it came in and exactly the zeros it came with."""
    model: Any = student.tuner.merge_and_unload()
    for name in student.pruned:
        weight: Any = model.get_submodule(name).weight
        weight.data = keep_kept(weight.data, weight.data, student.dtypes[f"{name}.weight"])
    for name, tensor in _tensors(model):
        tensor.data = tensor.data.to(student.dtypes[name])
    return model.requires_grad_(True).eval()


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _norms(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights and biases of every normalisation, by the name of its class (LayerNorm, LlamaRMSNorm, T5LayerNorm)."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            yield from module.parameters(recurse=False)


def _connector(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Every parameter of the part between vision and language; `Part.modules` may name bare parameters, too."""
    part = structure(model).parts.get("connector")
    for name in part.modules if part else ():
        for full, parameter in model.named_parameters():
            if full == name or full.startswith(f"{name}."):
                yield parameter
