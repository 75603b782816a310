"""What pruning costs: operations by kind, bytes beside the weights.

Letters: I inputs and O outputs of linears, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ressa.addends import PANELS
from ressa.costs.shapes import WIDE, Read, Shape, Workload, forward_flop
from ressa.statistics import AT_ONCE, Cost, Gram, Method, Moments


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


def statistic_bytes(needs: type[Any] | None, shape: Shape) -> int:
    """What calibration gathers for one block: a vector or a Gram for each input that is read."""
    if needs is None:
        return 0
    sizes = [r.inputs**2 if issubclass(needs, Gram) else r.inputs * (2 if needs is Moments else 1) for r in shape.reads]
    return WIDE * sum(sizes)


def work_bytes(method: Method, shape: Shape, width: int = 0) -> float:
    """The most that pruning a block holds beside its weights, of `width` bytes each, and statistics."""
    cost, most, made = method.cost, 0.0, 0.0
    for read in shape.reads:
        gram = read.inputs**2 if method.needs and issubclass(method.needs, Gram) else 0
        weights = read.weights if method.by_row else read.weights / read.linears
        weights = min(weights, AT_ONCE) if method.by_row and not gram else weights
        joined = width / WIDE * weights if method.by_row and gram and read.linears > 1 else 0  # one matrix of them all
        at_work = (cost.kept + cost.beside) * gram + cost.weights * weights + joined
        most = max(most, made + cost.making * gram, made + at_work)
        made += cost.kept * gram
    return WIDE * most


def batch_bytes(needs: type[Any], shape: Shape, load: Workload, width: int) -> float:
    """The most that one batch of `width` bytes a number holds while a block's inputs are captured and added.

    Beside the inputs: what the block took while it ran, its stream twice and what the widest linears put out, which
    the C library keeps for a while (benchmarks/results/scale.md); and an input in float32 with its square, or with a
    panel of its Gram.
    """
    tokens, narrow = min(load.batch_size, load.samples) * load.length(shape), width < WIDE
    runs = tokens * width * (2 * shape.width + max(r.outputs for r in shape.reads))
    gram = issubclass(needs, Gram)
    pieces = [r.inputs**2 / PANELS if gram else tokens * r.inputs for r in shape.reads]
    added = max(WIDE * (narrow * tokens * r.inputs + piece) for r, piece in zip(shape.reads, pieces, strict=True))
    return tokens * width * sum(r.inputs for r in shape.reads) + runs + added


def waiting_bytes(shape: Shape, load: Workload, width: int) -> float:
    """What all batches hold while they wait at a block: their stream, what goes in beside it, and a mask."""
    tokens = load.length(shape)
    return load.samples * tokens * (2 * width * shape.width + tokens)


def prune_bytes(method: Method, shapes: Iterable[Shape], load: Workload, width: int) -> tuple[float, float]:
    """(the most that pruning needs beside the weights, what of it must stand where a block is pruned).

    What a batch holds is given back before a method works.
    """
    there = resting = 0.0
    for shape in shapes:
        batch = batch_bytes(method.needs, shape, load, width) if method.needs else 0
        there = max(there, statistic_bytes(method.needs, shape) + max(batch, work_bytes(method, shape, width)))
        resting = max(resting, waiting_bytes(shape, load, width) if method.needs else 0)
    return there + resting, there
