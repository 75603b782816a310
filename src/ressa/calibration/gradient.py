"""Tokens weighed by gradient: each counts as much as the answers depend on what a linear puts out for it.

GuidedQuant (arXiv 2505.07004) and VLMQ (arXiv 2508.03351) weigh for quantisation: tokens of pictures are many and
alike. Here each answer token's loss is divided by the length of its gradient at the logits. Where the model is sure of
a token that gradient vanishes, though what is pruned can make it unsure.

Shapes: B sequences of a batch, T tokens, I input features, O outputs, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ressa.calibration.logits import decoder_token_ids, forced, logits_at
from ressa.calibration.tokens import TokenWeights
from ressa.data.prompts import IGNORED, to_device
from ressa.errors import RessaError
from ressa.model.matrix import AsLinear, parameter
from ressa.model.structure import Block

CLIP = 10.0  # a token counts at most so many times as much as the mean token of its record: gradients have heavy tails
LEAST = 1e-6  # of the length of a gradient at the logits: below, float32 knows none
FLOOR = 0.1  # of the weight, given to all alike: no token is lost on which this batch's answers do not depend


@dataclass(frozen=True)
class Guided(TokenWeights):
    """Token weights times the size of the loss's gradient at the outputs of the linear that reads the tokens.

    `sizes` is {linear: |gradient| of each token}. Within a record they are divided by their mean, cut off at `CLIP`,
    and brought to mean 1 again. Linears that are not named there weigh tokens as `TokenWeights` does.
    """

    sizes: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, block: Block, name: str, x: Tensor, *, crossed: bool) -> Tensor | None:
        """As that of `TokenWeights`."""
        counts = super().of(block, name, x, crossed=crossed)
        size = self.sizes.get(name)
        if size is None or size.numel() * x.shape[-1] != x.numel():
            return counts
        size = size.to(x.device).reshape(x.shape[:-1] if x.ndim > 2 else (1, -1))
        counted = torch.ones_like(size) if counts is None else (counts != 0).to(size.dtype).view_as(size)
        share = _to_mean_one(_to_mean_one(size, counted).clamp(max=CLIP), counted)
        share = (FLOOR + (1 - FLOOR) * share).reshape(x.shape[:-1])
        return share if counts is None else share * counts


def _to_mean_one(size: Tensor, counted: Tensor) -> Tensor:
    """`size` over its mean over the tokens of each record that count; one for all where that is zero."""
    tokens = tuple(range(1, size.ndim))
    mean = (size * counted).sum(tokens, keepdim=True) / counted.sum(tokens, keepdim=True).clamp(min=1)
    return torch.where(mean > 0, size / mean, 1.0)


def gradient_sizes(net: PreTrainedModel, blocks: Iterable[Block], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """{linear: |gradient at its outputs| of each token, x.shape[:-1]}, from one backward of the answers' loss.

    Linears that read the same input share a statistic, and have the root of the sum of their squares. Left out are
    experts and linears that this batch calls not once.

    Raises:
        RessaError: a gradient that is NaN or infinite.
    """
    reads: dict[str, list[Tensor]] = {}
    squares: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out_BTO: Tensor) -> None:
            reads.setdefault(name, []).append(args[0] if args else kwargs["input"])
            if not out_BTO.requires_grad:  # nothing before it has parameters that learn
                out_BTO.requires_grad_(True)
            out_BTO.register_hook(lambda grad: squares.__setitem__(name, grad.float().square().sum(-1)))

        return hook

    linears = {
        name: linear for block in blocks for name, linear in block.linears.items() if isinstance(linear, nn.Linear)
    }
    handles = [linear.register_forward_hook(watch(name), with_kwargs=True) for name, linear in linears.items()]
    try:
        with learning(net, ()), torch.enable_grad():
            _pull(net, batch).backward()
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[int, list[str]] = {}
    for name, tensors in reads.items():
        if len(tensors) == 1 and name in squares:
            groups.setdefault(id(tensors[0]), []).append(name)
    sizes = {names[0]: torch.stack([squares[name] for name in names]).sum(0).sqrt() for names in groups.values()}
    if not all(torch.isfinite(size).all() for size in sizes.values()):
        raise RessaError("the gradient of the answers is NaN or infinite: load the model in float32 or bfloat16")
    return {name: sizes[names[0]] for names in groups.values() for name in names}


def _pull(net: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    """The cross-entropy of the answers, whose gradient at the logits has length 1 for each of their tokens."""
    inputs, targets_BT = forced(to_device(dict(batch), net), decoder_token_ids(net.config))
    mask_BT = targets_BT != IGNORED
    logits_NV = logits_at(net, inputs, mask_BT).float()
    labels_N = targets_BT[mask_BT].to(logits_NV.device)
    losses_N = nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
    off_NV = logits_NV.detach().softmax(-1).scatter_add_(1, labels_N[:, None], -torch.ones_like(logits_NV[:, :1]))
    return (losses_N / off_NV.norm(dim=-1).clamp(min=LEAST)).sum()


@contextmanager
def learning(net: PreTrainedModel, linears: Iterable[nn.Linear | AsLinear]) -> Iterator[None]:
    """Gradients for the weights of these linears alone, no dropout; afterwards all is as before."""
    was_training = net.training
    before = [(weight, weight.requires_grad) for weight in net.parameters()]
    try:
        net.eval().requires_grad_(False)
        for linear in linears:
            parameter(linear).requires_grad_(True)
        yield
    finally:
        net.train(was_training)
        for weight, required in before:
            weight.requires_grad_(required)
            weight.grad = None
