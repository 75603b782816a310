"""What pruning and repair cost, from shapes alone: floating point operations and bytes. Nothing here is run.

Letters: I inputs and O outputs of linears, T tokens. A multiplication with its addition is two operations. Counted are
matrix products and factorisations; what goes element by element is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ressa.model.matrix import is_expert
from ressa.model.structure import Block, PartName
from ressa.statistics import PANELS, Cost, Gram, Method, Moments

WIDE = 4  # bytes of a float32, which all statistics, solvers and repair use
_PROJECTIONS = re.compile(r"(q|k|v|query|key|value)(_proj|_lin|_linear)?$")
_GATED = re.compile(r"(gate|up|w1|w3|wi_\d|gate_proj|up_proj)$")
_FUSED = re.compile(r"qkv|query_key_value|in_proj")
_ACROSS = re.compile(r"cross|EncDec|encoder_attn")


@dataclass(frozen=True)
class Read:
    """Linears of a block that read the same input: I inputs, O outputs of all of them together.

    `attends` is the width over which they attend (0 for a multilayer perceptron), `across` that they read another
    stream than their block's.
    """

    inputs: int
    outputs: int
    linears: int
    attends: int = 0
    across: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """What of a block its costs depend on; `fused` of its weights are experts that share a parameter."""

    part: PartName
    decoder: bool
    reads: tuple[Read, ...]
    parameters: int
    fused: int = 0

    @property
    def width(self) -> int:
        return self.reads[0].inputs if self.reads else 0


@dataclass(frozen=True)
class Workload:
    """How much runs through the model: `tokens` of a sample in the language model, `patches` in the vision tower.

    `answers` of the tokens are to be answered; the decoder of an encoder-decoder reads them alone.
    """

    samples: int
    batch_size: int
    tokens: int
    patches: int
    answers: int
    encoder_decoder: bool = False

    def length(self, shape: Shape, across: bool = False) -> int:
        """Tokens of one sample that a block (or what it reads from across) has."""
        if shape.part != "language":
            return self.patches
        if self.encoder_decoder:
            return self.answers if shape.decoder and not across else self.tokens
        return self.patches if across else self.tokens


def shape_of(block: Block) -> Shape:
    """The shape of a block. Names tell which linears read the same input; others are taken to read alone."""
    groups: dict[Any, list[tuple[str, Any]]] = {}
    for name, linear in block.linears.items():
        parent, _, leaf = name.rpartition(".")
        crossed = bool(_ACROSS.search(parent)) and leaf[0] in "kv"
        kind = "qkv" if _PROJECTIONS.match(leaf) else "gated" if _GATED.match(leaf) else None
        groups.setdefault((parent, kind, linear.weight.shape[1], crossed) if kind else name, []).append((leaf, linear))
    reads = tuple(_read(key, members) for key, members in groups.items())
    parameters = sum(parameter.numel() for parameter in block.module.parameters())
    fused = sum(linear.weight.numel() for linear in block.linears.values() if is_expert(linear))
    return Shape(block.part, block.stack == "decoder", reads, parameters, fused)


def _read(key: Any, members: list[tuple[str, Any]]) -> Read:
    outputs = sum(len(linear.weight) for _, linear in members)
    leaf, first = members[0]
    attends = outputs // 3 if _FUSED.search(leaf) else 0
    if isinstance(key, tuple) and key[1] == "qkv":
        attends = sum(len(linear.weight) for leaf, linear in members if leaf[0] == "q")
    return Read(first.weight.shape[1], outputs, len(members), attends, isinstance(key, tuple) and key[3])


# ---- floating point operations ---------------------------------------------------------------------------------------


def forward_flop(shape: Shape, load: Workload, samples: float) -> float:
    """One pass of `samples` through a block: linears and attention (whole, where a model's has windows)."""
    length, total = load.length(shape), 0.0
    for read in shape.reads:
        total += 2 * samples * load.length(shape, read.across) * read.weights
        across = any(other.across for other in shape.reads) and read.linears == 1
        total += 4 * samples * length * load.length(shape, across) * read.attends
    return total


def gram_flop(shape: Shape, load: Workload) -> float:
    """Of symmetric Grams, by panels that begin at the diagonal."""
    share = (PANELS + 1) / (2 * PANELS)
    return share * sum(2 * load.samples * load.length(shape, read.across) * read.inputs**2 for read in shape.reads)


def prune_flop(method: Method, shapes: Iterable[Shape], load: Workload) -> dict[str, float]:
    """{"forwards", "Grams", "factors", "products"} of pruning all `shapes` in order.

    Every block runs twice, as it was and pruned (the last one need not go on). As it was, all but the first batch run
    to the last linear only, whose input is captured and which is not computed.
    """
    blocks = list(shapes)
    flop = dict.fromkeys(("forwards", "Grams", "factors", "products"), 0.0)
    if method.needs is None:
        return flop
    for index, shape in enumerate(blocks):
        passes = (2 if index < len(blocks) - 1 else 1) * load.samples
        skipped = 2 * max(load.samples - load.batch_size, 0) * load.length(shape, shape.reads[-1].across)
        flop["forwards"] += forward_flop(shape, load, passes) - skipped * shape.reads[-1].weights
        if issubclass(method.needs, Gram):
            flop["Grams"] += gram_flop(shape, load)
            flop["factors"] += sum(method.cost.factors * read.inputs**3 for read in shape.reads)
            flop["products"] += sum(_product_flop(method.cost, read) for read in shape.reads)
    return flop


def _product_flop(cost: Cost, read: Read) -> float:
    """Of a solver's products with the Gram or what was made of it."""
    return 2.0 * read.inputs**2 * (cost.products * read.outputs + cost.squares * read.inputs)


def repair_flop(shapes: Iterable[Shape], load: Workload, *, rank: int, head: int, teacher: bool) -> float:
    """One optimiser step: student forward and backward, teacher forward, the output head (`head` weights) on answers.

    SparseLoRA with W_eff made twice: 6 T W + 8 O I rank (docs/sparse_lora.md).
    """
    batch, total = load.batch_size, 0.0
    for shape in shapes:
        forward = forward_flop(shape, load, batch)
        total += forward * (4 if teacher else 3)
        total += sum(8 * rank * read.weights for read in shape.reads)
    return total + 2 * batch * load.answers * head * (3 if teacher else 2)


# ---- bytes -----------------------------------------------------------------------------------------------------------


def statistic_bytes(needs: type[Any] | None, shape: Shape) -> int:
    """What calibration gathers for one block: a vector or a Gram for each input that is read."""
    if needs is None:
        return 0
    sizes = [r.inputs**2 if issubclass(needs, Gram) else r.inputs * (2 if needs is Moments else 1) for r in shape.reads]
    return WIDE * sum(sizes)


def work_bytes(method: Method, shape: Shape) -> float:
    """The most that pruning a block holds beside its weights and statistics."""
    cost, most, made = method.cost, 0.0, 0.0
    for read in shape.reads:
        gram = read.inputs**2 if method.needs and issubclass(method.needs, Gram) else 0
        weights = read.weights if method.by_row else read.weights / read.linears
        at_work = (cost.kept + cost.beside) * gram + cost.weights * weights
        most = max(most, made + cost.making * gram, made + at_work)
        made += cost.kept * gram
    return WIDE * most


def block_bytes(shape: Shape, load: Workload, width: int) -> float:
    """What one batch of `width` bytes a number holds in a block whose inputs are captured, one of them in float32."""
    tokens = load.batch_size * load.length(shape)
    return tokens * (
        width * (sum(r.inputs for r in shape.reads) + 2 * shape.width) + WIDE * max(r.inputs for r in shape.reads)
    )


def waiting_bytes(shape: Shape, load: Workload, width: int) -> float:
    """What all batches hold while they wait at a block: their stream, what goes in beside it, and a mask."""
    tokens = load.length(shape)
    return load.samples * tokens * (2 * width * shape.width + tokens)


def prune_bytes(method: Method, shapes: Iterable[Shape], load: Workload, width: int) -> tuple[float, float]:
    """(the most that pruning needs beside the weights, what of it must stand where a block is pruned)."""
    there = resting = 0.0
    for shape in shapes:
        batch = block_bytes(shape, load, width) if method.needs else 0
        there = max(there, statistic_bytes(method.needs, shape) + work_bytes(method, shape) + batch)
        resting = max(resting, waiting_bytes(shape, load, width) if method.needs else 0)
    return there + resting, there


def activation_bytes(shape: Shape, load: Workload, heads: int) -> float:
    """What autograd keeps of one block for one batch, in float32: inputs and outputs of linears, norms, attention."""
    length = load.length(shape)
    kept = sum(read.inputs + read.outputs for read in shape.reads) + 6 * shape.width
    scores = heads * length if any(read.attends for read in shape.reads) else 0
    return WIDE * load.batch_size * length * (kept + 2 * scores)


def adapters(shapes: Iterable[Shape], rank: int) -> int:
    """Numbers in SparseLoRA's A and B of every linear; those that read the same input have an A each."""
    return sum(rank * (read.linears * read.inputs + read.outputs) for shape in shapes for read in shape.reads)
