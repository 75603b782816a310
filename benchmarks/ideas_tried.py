"""The ideas that benchmarks/ideas.py tries, laid around the sweep in which `ressa prune` changes blocks.

Gradient-weighted statistics (VLMQ, arXiv 2508.03351; GuidedQuant, ICML 2025), arithmetic allocation (ATP, arXiv
2502.14770) and local block matching (3BASiL-TM, arXiv 2603.01376; LaCo), beside what stands for each today.

Shapes: B records, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ressa.calibration.data import CalibrationData
from ressa.calibration.logits import decoder_token_ids, forced, logits_at
from ressa.calibration.sweep import Turn
from ressa.calibration.tokens import TokenWeights
from ressa.calibration.walk import walk, walk_both
from ressa.data.prompts import IGNORED
from ressa.model.structure import Block, same_blocks
from ressa.repairing.reconstruct import Passes, _output, _train

TRAINED = ("local", "prefix", "after", "after-local")
ALLOCATED = ("owl", "dlp", "ecoflap", "arithmetic")
Around = Callable[[Iterable[Turn]], Iterable[Turn]]


def settings(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """What `ressa prune` is asked for beside method, sparsity and seed."""
    if name == "image":
        return {"token_weights": f"image={told['weight']}"}
    if name == "shrinkage":
        return {"shrinkage": told["share"]}
    return {"allocation": name} | told if name in ALLOCATED else {}


def prepared(name: str, told: dict[str, Any], data: CalibrationData, dense: Callable[[], Any]) -> Around:
    """What a variant lays around the turns of the sweep over `data`; `dense` gives the model as it was."""
    if name == "gradient":
        guide(data, **told)
    if name in TRAINED:
        passes = Passes(told["epochs"], told["lr"], data.seed)
        way = {"local": locally, "prefix": towards_prefix}.get(name, partial(afterwards, local=name != "after"))
        return lambda turns: way(turns, data, passes, dense)
    return lambda turns: turns


# ---- gradient-weighted statistics ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guided(TokenWeights):
    """Token weights times the size of the loss's gradient at what the linear puts out.

    `squares` is {linear: |gradient|² of each token}; linears that read the same input have their sum. Its root to the
    power of `power` is divided by its mean over the record's tokens that count, and cut off at `clip`; a share `floor`
    of the weight is the same for all tokens.
    """

    squares: Mapping[str, Tensor] = field(default_factory=dict)
    power: float = 1.0
    clip: float = 10.0
    floor: float = 0.1

    def of(self, block: Block, name: str, x: Tensor, *, crossed: bool) -> Tensor | None:
        counts = super().of(block, name, x, crossed=crossed)
        if name not in self.squares:
            return counts
        size = self.squares[name].reshape(x.shape[:-1]) ** (self.power / 2)
        counted = torch.ones_like(size) if counts is None else (counts != 0).to(size.dtype)
        share = normalised(normalised(size, counted).clamp(max=self.clip), counted)
        share = self.floor + (1 - self.floor) * share
        return share * counted if counts is None else share * counts


def normalised(size_BT: Tensor, counted_BT: Tensor) -> Tensor:
    """Divided by its mean over the tokens of a record that count; one where all of these are zero."""
    flat, counted = size_BT.flatten(1) * counted_BT.flatten(1), counted_BT.flatten(1)
    mean = (flat.sum(1) / counted.sum(1).clamp(min=1)).reshape(-1, *[1] * (size_BT.ndim - 1))
    return torch.where(mean > 0, size_BT / mean, 1.0)


def guide(data: CalibrationData, part: str = "", unit: bool = False, **told: float) -> None:
    """Puts guided token weights in the place of plain ones (of one `part`): one backward of the answers a batch."""
    plain, data = data.tokens, data.over([block for block in data.blocks if block.part.startswith(part)])
    found = [squares_of(data, batch, unit=unit) for batch in data.batches]
    data._made["tokens"] = [
        Guided(**vars(weights), squares=squares, **told) for weights, squares in zip(plain, found, strict=True)
    ]


def answers_loss(net: Any, batch: Mapping[str, Any], *, unit: bool) -> Tensor:
    """The answers' cross-entropy. `unit`: each answer token's is divided by the length of its gradient at the logits,
    for where the model is sure there is next to none, though pruning can make it unsure."""
    inputs, targets_BT = forced(batch, decoder_token_ids(net.config))
    logits_NV = logits_at(net, inputs, targets_BT != IGNORED).float()
    labels_N = targets_BT[targets_BT != IGNORED]
    losses_N = cross_entropy(logits_NV, labels_N, reduction="none")
    if unit:
        with torch.no_grad():
            length_N = (logits_NV.softmax(-1) - one_hot(labels_N, logits_NV.shape[-1])).norm(dim=-1)
        losses_N = losses_N / length_N.clamp(min=1e-6)
    return losses_N.sum()


def squares_of(data: CalibrationData, batch: Mapping[str, Any], *, unit: bool) -> dict[str, Tensor]:
    """{linear: |gradient of the answers' loss at its output|² of each token} of the dense model."""
    reads: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_module: Any, args: tuple[Any, ...], out: Tensor) -> None:
            reads[name] = args[0]
            if not out.requires_grad:
                out.requires_grad_(True)
            out.register_hook(lambda gradient: squares.__setitem__(name, gradient.float().square().sum(-1)))

        return keep

    data.net.requires_grad_(False)
    linears = {name: linear for block in data.blocks for name, linear in block.linears.items()}
    handles = [linear.register_forward_hook(hook(name)) for name, linear in linears.items()]
    try:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=data.autocast is not None):
            loss = answers_loss(data.net, batch, unit=unit)
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    shared: dict[int, list[str]] = {}
    for name, x in reads.items():
        shared.setdefault(id(x), []).append(name)
    found = {}
    for names in shared.values():
        found |= dict.fromkeys(names, sum(squares[name] for name in names if name in squares))
    return {name: total for name, total in found.items() if isinstance(total, Tensor)}


# ---- block matching --------------------------------------------------------------------------------------------------


def locally(turns: Iterable[Turn], data: CalibrationData, passes: Passes, dense: Any) -> Iterator[Turn]:
    """Each block, once pruned, is trained towards what it gave before on the same inputs, which trained blocks gave."""
    for turn in turns:
        visit = turn.visit
        assert visit is not None
        with torch.no_grad():
            wanted = [_output(visit.block.module, call) for call in visit.calls]
        yield turn
        _train(visit, wanted, data.tokens, passes)


def towards_prefix(turns: Iterable[Turn], data: CalibrationData, passes: Passes, dense: Any) -> Iterator[Turn]:
    """The same, towards what the dense block gives on the dense model's inputs."""
    net = dense()
    beside = walk(net, same_blocks(data.blocks, net), data.batches, propagate="dense")
    for turn, original in zip(turns, beside, strict=True):
        visit = turn.visit
        assert visit is not None
        with torch.no_grad():
            wanted = [_output(original.block.module, call) for call in original.calls]
        yield turn
        _train(visit, wanted, data.tokens, passes)


def afterwards(
    turns: Iterable[Turn], data: CalibrationData, passes: Passes, dense: Any, *, local: bool
) -> Iterator[Turn]:
    """All blocks are pruned, then trained one after the other: today's `reconstruct`, or with the `local` target."""
    yield from turns
    net = dense()
    both = walk_both((data.net, data.blocks), (net, same_blocks(data.blocks, net)), data.batches)
    for visit, original in both:
        calls = visit.calls if local else original.calls
        with torch.no_grad():
            wanted = [_output(original.block.module, call) for call in calls]
        _train(visit, wanted, data.tokens, passes)
