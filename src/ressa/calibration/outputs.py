"""The outputs of blocks, captured while a model runs, and the squared error between those of two models.

Shapes: B sequences, T tokens, D width of a block's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ressa.calibration.tokens import TokenWeights
from ressa.calibration.visit import Call, Visit
from ressa.model.structure import Block


@contextmanager
def outputs_of(blocks: Iterable[Block]) -> Iterator[dict[str, list[Tensor]]]:
    """{block: the first tensor it returned, call by call}, filled while models run inside of the `with`."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for block in blocks:
            kept = found.setdefault(block.name, [])

            def keep(module: nn.Module, args: Any, output: Any, kept: list[Tensor] = kept) -> None:
                kept.append(next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)))

            stack.callback(block.module.register_forward_hook(keep).remove)
        yield found


def output_of(visit: Visit, call: Call) -> Tensor:
    """What the visited block, as it now is, hands on in this call."""
    with outputs_of([visit.block]) as found:
        visit.run(call)
    return found[visit.block.name][0]


def squared_error(ours: Tensor, dense: Tensor, weights: TokenWeights, block: Block) -> tuple[Tensor, Tensor]:
    """|ours - dense|² and |dense|² of one call, each summed over the tokens that count, as they count; float32."""
    counts_BT = weights.of(block, block.name, dense, crossed=False)
    return squares(ours.float() - dense.float(), counts_BT), squares(dense.float(), counts_BT)


def squares(x_BTD: Tensor, counts_BT: Tensor | None) -> Tensor:
    """|x|² summed over the tokens that count, as they count."""
    squares_BT = x_BTD.square().sum(-1)
    if counts_BT is None:
        return squares_BT.sum()
    return (squares_BT * counts_BT).where(counts_BT != 0, 0).sum()  # padding may hold NaN
