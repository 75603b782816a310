"""Block reconstruction: the kept weights of one block after the other are trained to give the dense block's outputs.

The pruned and the dense model walk through the calibration batches side by side (`calibration.walk`). At each block the
dense one, on its own inputs, says what is wanted; the pruned one, on inputs from blocks that were reconstructed before
it, is trained towards it by the relative squared distance over the tokens that count; then both go on. Gradients reach
through one block only, so it is fast, and only one block has an optimiser. (EBFT, arXiv 2402.12419; "A Free Lunch in
LLM Compression", arXiv 2510.14444.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from ressa.calibration.outputs import squared_error
from ressa.calibration.tokens import TokenWeights, token_weights
from ressa.calibration.visit import Call, Visit
from ressa.calibration.walk import walk_both
from ressa.model.matrix import Convolution, holder, is_norm
from ressa.model.structure import Block, Structure, same_blocks
from ressa.repairing.masked_finetune import KeptExperts, KeptLinear, kept, put
from ressa.settings import Progress


@dataclass(frozen=True)
class Passes:
    """How each block is trained: Adam, `epochs` over all batches in an order drawn by `seed`, cosine from `lr` to 0."""

    epochs: int
    lr: float
    seed: int


def reconstruct(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Sequence[dict[str, Any]],
    passes: Passes,
    *,
    device: Any = None,
    progress: Progress | None = None,
) -> dict[str, tuple[float, float]]:
    """Train the `blocks` of `model`, which is float32, in place; zeros of their linears stay zero.

    Kept weights of the linears that `blocks` name, the biases beside them, and norms are trained.

    Returns:
        {block: (relative squared distance from the dense block's outputs before, after)} on the same batches.

    Raises:
        RessaError: `dense` has no such block.
    """
    tokens = [token_weights(batch, model.config) for batch in batches]
    found = {}
    originals = dense, same_blocks(blocks, dense)
    for visit, original in walk_both((model, blocks), originals, batches, device=device, progress=progress):
        with torch.no_grad():
            wanted = [_output(original.block.module, call) for call in original.calls]
        found[visit.block.name] = _train(visit, wanted, tokens, passes)
    return found


def reconstructed_blocks(parts: Structure, pruned: Collection[str]) -> list[Block]:
    """The blocks that hold any of the `pruned` linears, with these alone. Patch embeddings stay as they are."""
    found = []
    for block in parts.blocks():
        linears = {name: linear for name, linear in block.linears.items() if name in pruned}
        if linears and not isinstance(block.module, Convolution):
            found.append(replace(block, linears=linears))
    return found


def _train(visit: Visit, wanted: list[Tensor], tokens: Sequence[TokenWeights], passes: Passes) -> tuple[float, float]:
    """Train the visited block; the distance before and after."""
    outer: Any = nn.Module()  # a block may be one linear, in whose own place another module is put
    outer.block = visit.block.module
    inner = (f"block{name.removeprefix(visit.block.name)}" for name in sorted(visit.block.linears))
    names = list(dict.fromkeys(holder(outer, name) for name in inner))
    before = _distance(outer.block, visit, wanted, tokens)
    outer.requires_grad_(False)
    for name in names:
        put(outer, name, kept(outer.get_submodule(name)))
    _optimise(outer.block, visit, wanted, tokens, passes)
    for name in names:
        put(outer, name, outer.get_submodule(name).restored())
    outer.requires_grad_(False)
    return before, _distance(outer.block, visit, wanted, tokens)


@torch.enable_grad()
def _optimise(
    module: nn.Module, visit: Visit, wanted: list[Tensor], tokens: Sequence[TokenWeights], passes: Passes
) -> None:
    """Adam on what is to be trained of `module`, the visited block."""
    trained, steps = _trained(module), passes.epochs * len(visit.calls)
    for parameter in trained:
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(trained, lr=passes.lr)
    cosine = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(1, steps))))
    draw = random.Random(passes.seed)
    for _ in range(passes.epochs):
        for i in draw.sample(range(len(visit.calls)), len(visit.calls)):
            call = visit.calls[i]
            far, size = squared_error(_output(module, call), wanted[i], tokens[call.batch], visit.block)
            adam.zero_grad()
            (far / size.clamp(min=torch.finfo(torch.float32).tiny)).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            adam.step()
            cosine.step()


def _trained(module: nn.Module) -> list[nn.Parameter]:
    """Kept weights, the biases beside them, and norms."""
    found: list[nn.Parameter] = []
    for inner in module.modules():
        if isinstance(inner, KeptExperts):
            found += inner.kept.values()
        elif isinstance(inner, KeptLinear):
            found += [inner.kept_N, *([inner.base.bias] if inner.base.bias is not None else [])]
        elif is_norm(inner):
            found += inner.parameters(recurse=False)
    return found


@torch.no_grad()
def _distance(module: nn.Module, visit: Visit, wanted: list[Tensor], tokens: Sequence[TokenWeights]) -> float:
    fars, sizes = 0.0, 0.0
    for call, reference in zip(visit.calls, wanted, strict=True):
        far, size = squared_error(_output(module, call), reference, tokens[call.batch], visit.block)
        fars, sizes = fars + far.item(), sizes + size.item()
    return fars / sizes if sizes else 0.0


def _output(module: nn.Module, call: Call) -> Tensor:
    """The first tensor that the block, as it now is, returns."""
    output = module(*call.args, **call.kwargs)
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
