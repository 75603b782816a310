"""Hidden-state distillation: every block of the student is to say what the dense block says, at every token.

The answer tokens alone are few; this asks something of each token of each block (SquareHead, Kurtic et al. 2023,
arXiv 2310.06927, equation 2). Distances are taken while the student runs, each behind its block, so that the backward
comes to them one by one: what was kept for one is let go before the next, and one block's gradient is there at a time.

Shapes: B sequences, T tokens, D width of a block's output, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves

from ressa.calibration.outputs import squares
from ressa.calibration.tokens import TokenWeights
from ressa.model.matrix import Convolution
from ressa.model.precision import wide
from ressa.model.structure import Block, Structure
from ressa.repairing.settings import Repair

Give = Callable[[], Tensor]
Outputs = Mapping[str, Sequence[Give]]  # what the dense blocks returned, call by call, given when it is asked for
Distances = Sequence[tuple[float, Sequence[Block]]]  # (weight in the loss, blocks)
Taken = Mapping[str, Sequence[tuple[Tensor, Tensor]]]  # (|student - teacher|², |teacher|²) of every call of a block
Share = Callable[[Tensor], Tensor]


class SquaredDistance(torch.autograd.Function):
    """(|ours - dense|², |dense|²) over the tokens that count, float32 or wider; the gradient is that of the first.

    Nothing is kept but `ours` and what gives the dense output, which is asked again in the backward.
    """

    @staticmethod
    def forward(ctx, ours, give: Give, weights: TokenWeights, block: Block) -> tuple[Tensor, Tensor]:
        """ours (B, T, D), as that of `give()`."""
        dense = give().to(ours.device)
        counts_BT = weights.of(block, block.name, dense, crossed=False)
        ctx.save_for_backward(ours, counts_BT)
        ctx.give = give
        dtype = wide(ours)
        far, size = squares(ours.to(dtype) - dense.to(dtype), counts_BT), squares(dense.to(dtype), counts_BT)
        ctx.mark_non_differentiable(size)
        return far, size

    @staticmethod
    @once_differentiable
    def backward(ctx, dfar, _):
        ours, counts_BT = ctx.saved_tensors
        dense, ctx.give = ctx.give(), None
        difference = ours.to(dfar.dtype) - dense.to(ours.device, dfar.dtype)
        del dense
        difference.mul_(2 * dfar)
        if counts_BT is not None:
            difference.mul_(counts_BT[..., None]).masked_fill_(counts_BT[..., None] == 0, 0)  # padding may hold NaN
        return difference.to(ours.dtype), None, None, None


@contextmanager
def distances_taken(blocks: Iterable[Block], theirs: Outputs, weights: TokenWeights) -> Iterator[Taken]:
    """The distances of `blocks` from what the dense ones gave for the same batch, filled while the student runs."""
    taken: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with ExitStack() as stack:
        for block in blocks:

            def take(module: nn.Module, args: Any, output: Any, block: Block = block) -> None:
                calls = taken.setdefault(block.name, [])
                ours = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
                calls.append(SquaredDistance.apply(ours, theirs[block.name][len(calls)], weights, block))

            stack.callback(block.module.register_forward_hook(take).remove)
        yield taken


def sizes(blocks: Iterable[Block], theirs: Outputs, weights: TokenWeights) -> Tensor:
    """|teacher|² of every block, (N,): what the distances of a batch are divided by; 0 of one that was not entered."""
    found = []
    for block in blocks:
        ys = (give() for give in theirs.get(block.name, ()))
        calls = [squares(y.to(wide(y)), weights.of(block, block.name, y, crossed=False)) for y in ys]
        found.append(torch.stack(calls).sum() if calls else torch.zeros(()))
    where = next((size.device for size in found if size.device.type != "cpu"), None)
    return torch.stack([size.to(where) for size in found])


def hidden_loss(
    taken: Taken, blocks: Sequence[Block], whole_N: Tensor | None = None, share: Share = lambda sizes: sizes
) -> Tensor:
    """The mean over `blocks` of |student - teacher|² / |teacher|², over the tokens that count, float32.

    Args:
        whole_N: |teacher|² of every block in a larger batch, of which this one is a part; shared already.
        share: |teacher|² of every block -> its mean over all processes, each with a batch of its own: with it the mean
            of their losses is the loss of all their batches together.
    """
    device = next((far.device for calls in taken.values() for far, _ in calls), None)
    nothing = torch.zeros((), device=device), torch.zeros((), device=device)  # of a block that the batch never enters
    sums = [[torch.stack(part).sum() for part in zip(*(taken.get(b.name) or [nothing]), strict=True)] for b in blocks]
    far_N, size_N = (torch.stack(part) for part in zip(*sums, strict=True))
    size_N = share(size_N) if whole_N is None else whole_N
    there = size_N > 0
    return (far_N[there] / size_N[there]).sum() / there.sum().clamp(min=1)


def distilled_blocks(parts: Structure) -> list[Block]:
    """The blocks of vision and language: those whose outputs are distilled. Patch embeddings are not."""
    return [block for block in parts.blocks(("vision", "language")) if not isinstance(block.module, Convolution)]


def connector_end(parts: Structure) -> list[Block]:
    """The last module between vision and language, whose output is what the language model sees; none without one."""
    return parts.blocks(("connector",))[-1:]


def distances(settings: Repair, parts: Structure) -> Distances:
    """(weight, blocks) of every distance of outputs that the loss has; of complete settings."""
    found = [(settings.hidden_weight, distilled_blocks(parts)), (settings.connector_weight, connector_end(parts))]
    return [(weight, blocks) for weight, blocks in found if weight and blocks]
