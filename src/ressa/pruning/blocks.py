"""Blocks pruned one after the other: by their weights alone, or for the inputs that calibration batches give them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import partial
from itertools import repeat
from typing import Any

import torch
from transformers import PreTrainedModel

from ressa import methods
from ressa.calibration.asymmetric import shifts
from ressa.calibration.data import CalibrationData
from ressa.calibration.gather import gather, reading_order
from ressa.calibration.resume import FinishedBlocks
from ressa.calibration.tokens import TokenWeights
from ressa.calibration.walk import Progress, Visit, walk
from ressa.errors import RessaError, RessaWarning
from ressa.model.matrix import is_expert
from ressa.model.structure import Block, structure
from ressa.patterns import NofM, Pattern
from ressa.statistics import Gram, Method


def by_weights(run: Method, blocks: list[Block], patterns: dict[str, Pattern], progress: Progress | None) -> None:
    """Prunes every block by a method that looks at weights alone."""
    for done, block in enumerate(blocks):
        if progress:
            progress(done, len(blocks), block.name)
        prune_block(run, block, dict.fromkeys(block.linears), patterns)
    if progress:
        progress(len(blocks), len(blocks), "")


def by_inputs(
    run: Method,
    data: CalibrationData,
    blocks: list[Block],
    patterns: Mapping[str, Pattern],
    propagate: str,
    order: str,
    asymmetric: float,
    finished: FinishedBlocks,
) -> int:
    """Prunes every block for the inputs that it gets, but for `finished` ones. Returns how many those were.

    Raises:
        RessaError: a block that no calibration record enters.
    """
    road = partial(walk, batches=data.batches, device=data.device, autocast=data.autocast)
    visits = road(data.net, blocks, propagate=propagate, progress=data.progress)
    originals = road(*_original(data.net, blocks), propagate="dense") if asymmetric else repeat(None)
    resumed, unseen = 0, dict.fromkeys(block.name for block in blocks)
    for visit, original in zip(visits, originals, strict=False):
        if finished.has(visit.block):
            for call in visit.calls if visit.onward else ():
                visit.run(call)  # the batch goes on with what the dense block makes of it
            finished.put_back(visit.block)
            resumed += 1
        else:
            for linears in _turns(visit, order):
                inputs = gather(visit, run.needs, data.tokens, linears)
                if original:
                    heard = {name: inputs[name] for name in linears if name in inputs and patterns[name].sparsity}
                    _aim(visit, original, data.tokens, heard, asymmetric)
                prune_block(run, visit.block, inputs, patterns, linears)
                del inputs  # Grams are large: none of this block while the next one's are gathered
            finished.keep(visit.block)
        del unseen[visit.block.name]
    for name in unseen:
        finished.forget()  # of no use to a run that could go through
        raise RessaError(f"no calibration record enters {name}: add records that do, or leave its part out")
    return resumed


@torch.no_grad()
def prune_block(
    run: Method,
    block: Block,
    inputs: Mapping[str, Any],
    patterns: Mapping[str, Pattern],
    linears: Iterable[str] | None = None,
) -> None:
    """Prunes the linears of one block (or only these) where they stand, given the statistics of their inputs.

    An expert that no token was sent to is pruned by magnitude, with a UserWarning.

    Raises:
        RessaError: a linear, not an expert, of whose inputs nothing is known.
    """
    idle: list[str] = []
    for names in _alike(run, block.linears if linears is None else linears, inputs, patterns):
        unheard = [name for name in names if not _heard(name, inputs)]
        for name in unheard:
            if not is_expert(block.linears[name]):
                raise RessaError(
                    f"no calibration token reaches {name}, though its block runs: use records that reach it, leave its "
                    "part out, or prune by magnitude, which needs none"
                )
        idle += unheard
        weights = [block.linears[name].weight for name in names]
        stacked_OI = torch.cat(weights) if len(weights) > 1 else weights[0]
        how, known = (methods.METHODS["magnitude"], None) if unheard else (run, inputs[names[0]])
        pruned_OI = how(stacked_OI, known, patterns[names[0]])
        for weight_OI, part_OI in zip(weights, pruned_OI.split([len(w) for w in weights]), strict=True):
            weight_OI.copy_(part_OI)
    if idle:
        more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
        warnings.warn(
            f"no calibration token was sent to {idle[0]}{more}: pruned by magnitude", RessaWarning, stacklevel=2
        )


def _heard(name: str, inputs: Mapping[str, Any]) -> bool:
    return name in inputs and (inputs[name] is None or inputs[name].tokens > 0)


def _alike(
    run: Method, linears: Iterable[str], inputs: Mapping[str, Any], patterns: Mapping[str, Pattern]
) -> list[list[str]]:
    """The linears to prune; those whose rows can be pruned as rows of one matrix (query, key and value) together."""
    groups: dict[Any, list[str]] = {}
    for name in linears:
        pattern = patterns[name]
        rows_alone = run.by_row and (isinstance(pattern, NofM) or pattern.group == "row")
        if pattern.sparsity:
            shared = inputs.get(name) if rows_alone else None
            groups.setdefault((id(shared), pattern) if shared is not None else name, []).append(name)
    return list(groups.values())


def _turns(visit: Visit, order: str) -> list[list[str]]:
    """The linears of a block that are pruned from one gathering of inputs, turn by turn; unread ones come last."""
    turns = reading_order(visit) if order == "layer" else []
    read = {name for names in turns for name in names}
    return [*turns, rest] if (rest := [name for name in visit.block.linears if name not in read]) else turns


def _original(net: PreTrainedModel, blocks: list[Block]) -> tuple[PreTrainedModel, list[Block]]:
    """A copy of the model, to stay dense, and the same blocks of it."""
    copy, names = deepcopy(net), {block.name for block in blocks}
    return copy, [block for block in structure(copy).blocks() if block.name in names]


@torch.no_grad()
def _aim(visit: Visit, original: Visit, tokens: list[TokenWeights], grams: dict[str, Gram], way: float) -> None:
    """Moves weights a part of the `way` to those that make up for what the pruned blocks before them lost."""
    for name, shift_II in shifts(visit, original, tokens, grams).items():
        weight_OI = visit.block.linears[name].weight
        weight_OI.add_((way * weight_OI.float() @ shift_II).to(weight_OI.dtype))
