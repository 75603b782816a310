"""What a type must show: the verbs themselves, on its pico model, with its own inputs in the place of records."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

import pico
import ressa
import ressa.calibration.data
import ressa.inspection.verb as inspection
import ressa.model.streamed as streamed
import ressa.repairing.stages as stages
import ressa.repairing.verb as repairing
from families.batches import batches
from families.shrink import pico_config
from families.specials import SPECIALS
from ressa.calibration.walk import walk
from ressa.data.prompts import IGNORED, is_encoder_decoder
from ressa.evaluation.divergence import answer_log_probs
from ressa.model.folder import patterns_of, verify, write_folder
from ressa.model.structure import structure


@dataclass
class Case:
    """A saved pico model of a type, its inputs, its logits; and what was in memory when a folder was written.

    `model` is the saved one, loaded: for what changes nothing in it.
    """

    folder: Path
    data: Path
    model: Any
    inputs: list[dict[str, Any]]
    logits: list[Tensor]
    written: dict[Path, tuple[dict[str, Tensor], list[Tensor]]] = field(default_factory=dict)


def build(model_type: str, folder: Path, data: Path) -> Case:
    """A random model of the type, drawn wide enough that every layer tells; nothing in it is zero or one."""
    torch.manual_seed(0)
    config = pico_config(model_type, **SPECIALS.get(model_type, {}))
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.numel() < 2 or parameter.std() < 0.1 else 0
            parameter.add_(torch.randn_like(parameter) * spread)
    model.save_pretrained(folder)
    pico.tokenizer().save_pretrained(folder)
    model = reload(folder)
    inputs = batches(model, model_type)
    return Case(folder, data, model, inputs, logits(model, inputs))


def reload(folder: Path, attention: str | None = None) -> Any:
    """By plain transformers."""
    model, told = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"], f"not in the folder: {sorted(told['missing_keys'])}"
    if attention:
        model.set_attn_implementation(attention)
    return model.eval()


def logits(model: Any, inputs: list[dict[str, Any]]) -> list[Tensor]:
    with torch.no_grad():
        return [model(**{**batch, "use_cache": False}).logits for batch in inputs]


def inspect(case: Case) -> dict[str, Any]:
    """Every parameter is counted once, every linear is prunable or kept for a reason."""
    with _fed(case):
        told = inspection.inspect(case.folder)
    model = case.model
    plan = structure(model)
    prunable = {name for block in plan.blocks() for name in block.linears}
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert not prunable & plan.kept.keys()
    assert linears <= prunable | plan.kept.keys()
    assert sum(part.parameters for part in plan.parts.values()) == sum(p.numel() for p in model.parameters())
    assert told["parts"]["language"]["linears"]
    return told


def walk_changes_nothing(case: Case) -> None:
    """A walk in which nothing is pruned ends with the logits of a plain forward, bit for bit."""
    model, outputs = case.model, []
    for _ in walk(model, structure(model).blocks(), case.inputs, outputs=outputs):
        pass
    assert all(torch.equal(walked.logits, plain) for walked, plain in zip(outputs, case.logits, strict=True))


def answers(case: Case) -> None:
    """The likelihood of reference answers, for which only their logits are computed, is that of a plain forward."""
    model, batch, logits_BTV = case.model, case.inputs[0], case.logits[0]
    labels_BT = batch["labels"]
    if not is_encoder_decoder(model.config):  # where the model joins a picture to its text, the text comes last
        labels_BT, logits_BTV = labels_BT[:, 1:], logits_BTV[:, -labels_BT.shape[1] : -1]
    mask_BT = labels_BT != IGNORED
    with torch.no_grad():
        logp_NV, labels_N, counts = answer_log_probs(model, dict(batch))
    assert counts == mask_BT.sum(1).tolist()
    assert labels_N.tolist() == labels_BT[mask_BT].tolist()
    torch.testing.assert_close(logp_NV, logits_BTV[mask_BT].log_softmax(-1), rtol=0, atol=1e-4)


def prune(case: Case, out: Path, method: str, sparsity: str) -> dict[str, Any]:
    """Sequential, vision and language; half of every matrix is zero, and the folder loads as it was."""
    with _fed(case):
        manifest = ressa.prune(case.folder, out, data=case.data, samples=3, method=method, sparsity=sparsity)
    for name, matrix in manifest["matrices"].items():
        assert abs(matrix["sparsity"] - 0.5) < 0.02, name
    model = reload(out)
    case.written[out] = (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        logits(model, case.inputs),
    )
    _only_pruned(case, out, manifest, method)
    return manifest


def _only_pruned(case: Case, out: Path, manifest: dict[str, Any], method: str) -> None:
    """Nothing but the matrices that were pruned has changed, and these only, with Wanda, to zero."""
    holders = {name.rpartition(".")[0] for name in manifest["matrices"]}  # of experts, which share a parameter
    for name, dense in case.model.state_dict().items():
        ours, touched = (
            case.written[out][0][name],
            name.removesuffix(".weight") in manifest["matrices"].keys() | holders,
        )
        assert touched or torch.equal(ours, dense), name
        assert method != "wanda" or torch.equal(ours, dense.where(ours != 0, 0)), name


def repair(case: Case, pruned: Path, out: Path) -> dict[str, Any]:
    """One step of SparseLoRA, merged: kept weights changed, zeros did not, and the folder loads as it was."""
    with _fed(case):
        manifest = ressa.repair(
            pruned, out, teacher=case.folder, data=case.data, samples=2, steps=1, batch_size=2, rank=2, warmup=0
        )
    verify(out, patterns_of(manifest))
    _loads_as_written(case, out, attention="eager")  # the one that repair sets on a CPU
    before, after = case.written[pruned][0], case.written[out][0]
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    part_of = {name: entry["part"] for name, entry in manifest["matrices"].items()}
    assert {part for name, part in part_of.items() if f"{name}.weight" in changed} == set(part_of.values())
    assert changed >= {name.rpartition(".")[0] for name in part_of} & before.keys()  # experts, all in one parameter
    return manifest


def _loads_as_written(case: Case, out: Path, attention: str | None = None) -> None:
    """Every weight bit for bit, and the logits but for the rounding of convolutions, which goes by places in memory."""
    model = reload(out, attention)
    state, expected = case.written[out]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for ours, theirs in zip(logits(model, case.inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@contextmanager
def _fed(case: Case) -> Iterator[None]:
    """The verbs get the type's own inputs instead of those that a processor would make of records."""

    def load(name: Any, **_: Any) -> tuple[Any, Any]:
        return reload(Path(name)), pico.tokenizer()

    def write(out: Any, model: Any, *rest: Any, **named: Any) -> None:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        case.written[Path(out)] = state, logits(model, case.inputs)
        write_folder(out, model, *rest, **named)

    with (
        patch.object(ressa.calibration.data, "draw", lambda *_, **__: case.inputs),
        patch.object(stages, "encode", lambda *_, **__: case.inputs[0]),
        patch.object(streamed, "load_processor", lambda *_, **__: pico.tokenizer()),
        patch.object(repairing, "load", load),
        patch.object(stages, "load", load),
        patch.object(repairing, "write_folder", write),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "no calibration token was sent to")
        yield
