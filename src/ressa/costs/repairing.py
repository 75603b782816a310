"""What repairing costs: operations of a step, and the bytes it holds, for each way in which it can be carried out.

What stands from the forward to the backward is counted tensor by tensor for a transformer's block under SparseLoRA:
norms and the stream between blocks are float32, products are of the width they are computed in.

Letters: B records, T tokens, D width of the stream, N answer tokens, V words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ressa.costs.shapes import WIDE, Shape, Sizes, Workload, forward_flop

MOMENTS = 8  # bytes of AdamW's state of a number; with 8 bits 2
CHUNK = 1 << 25  # logits of which repair takes the losses at a time
SLICE = 1 << 23  # weights that SparseLoRA's products handle at a time


@dataclass(frozen=True)
class Way:
    """How a step is carried out, as far as its memory depends on it.

    `width` is the bytes of a number in products, `recompute` that blocks are computed again, `pieces` that a batch runs
    in so many parts, `teacher` that the dense model stands in memory, `outputs` that those of its blocks are distilled,
    `moments` the bytes of the optimiser's state of a number, `scores` that attention keeps them.
    """

    width: int = WIDE
    recompute: bool = False
    pieces: int = 1
    teacher: bool = True
    outputs: bool = True
    moments: int = MOMENTS
    scores: bool = True

    def __str__(self) -> str:
        again = ["blocks computed again in the backward pass"] if self.recompute else []
        return " and ".join([*again, *([f"batches in {self.pieces} parts"] if self.pieces > 1 else [])])


def repair_flop(
    shapes: Iterable[Shape], load: Workload, *, rank: int, head: int, teacher: bool, recompute: bool = False
) -> float:
    """One optimiser step: student forward and backward, teacher forward, the output head (`head` weights) on answers.

    SparseLoRA with W_eff made twice: 6 T W + 8 O I rank (docs/sparse_lora.md); with `recompute` blocks run, and W_eff
    is made, once more.
    """
    batch, total = load.batch_size, 0.0
    for shape in shapes:
        forward = forward_flop(shape, load, batch)
        total += forward * (3 + teacher + recompute)
        total += sum((8 + 2 * recompute) * rank * read.weights for read in shape.reads)
    return total + 2 * batch * load.answers * head * (3 if teacher else 2)


def repair_bytes(sizes: Sizes, load: Workload, way: Way, new: int, own: int) -> dict[str, float]:
    """The most that a step holds, by what holds it: gradients come as activations go, and are counted with them.

    Args:
        new: numbers that adapters add.
        own: numbers of the model that are trained as they are.
    """
    load = replace(load, batch_size=-(-load.batch_size // way.pieces))
    weights = sizes.bytes(narrow=way.width < WIDE)
    widened = max(0, own - sizes.trained) * WIDE // 2 if way.width < WIDE else 0  # matrices that are trained themselves
    blocks = [block_bytes(shape, load, way, sizes.heads) for shape in sizes.shapes]
    streams = [WIDE * load.batch_size * load.length(shape) * shape.width for shape in sizes.shapes]
    kept = sum(streams if way.recompute else blocks)
    kept += sum(streams) if way.teacher and way.outputs else 0
    work = _at_work(blocks, sizes, load, way)
    return {
        "student": weights + widened,
        "teacher": weights if way.teacher else 0,
        "optimizer": new * WIDE + (new + own) * way.moments,
        "activations": max(kept + max(logit_bytes(sizes, load, way), work), (new + own) * WIDE + work),
        "workspace": _workspace(sizes, way),
    }


def block_bytes(shape: Shape, load: Workload, way: Way, heads: tuple[int, int]) -> float:
    """What autograd keeps of one block for one batch.

    Float32: the stream before attention and before the perceptron, what norms make of it and, of those that are no
    LayerNorm, once more on the way. As wide as products: queries, keys and values; what attention hands to its output;
    what stands before, behind and beside the activation function.
    """
    length = load.length(shape)
    numbers: float = WIDE * shape.width * (4 if shape.layer_norms else 6)
    for read in shape.reads:
        inner = read.outputs * (1.5 if read.linears > 1 else 1) if read.outputs > read.inputs else read.inputs
        numbers += read.share * way.width * (3 * read.attends or inner)
    if way.scores and any(read.attends for read in shape.reads):
        numbers += heads[shape.part == "language"] * length * (WIDE + (way.width if way.width < WIDE else 0))
    return load.batch_size * length * numbers


def logit_bytes(sizes: Sizes, load: Workload, way: Way) -> float:
    """The logits of student and teacher at answers, the student's gradient, and what the losses make of a chunk."""
    logits = load.batch_size * load.answers * sizes.words
    head = sizes.head * way.width if sizes.tied and way.width < WIDE else 0  # the head is cast where it is used
    return logits * (2 * WIDE + (way.width if way.teacher else 0)) + 6 * WIDE * min(logits, CHUNK) + head


def cache_bytes(shapes: Iterable[Shape], load: Workload, top_k: int) -> float:
    """What the teacher's cache keeps of one record on disk: bfloat16 outputs of blocks, and the likeliest words."""
    return sum(2 * load.length(shape) * shape.width for shape in shapes) + load.answers * top_k * 2 * WIDE


def ways(
    load: Workload, start: Way, recompute: Sequence[bool] = (False, True), records: int | None = None
) -> list[Way]:
    """In which ways a step can be carried out, the fastest first; with so many `records` at a time, if that is told."""
    sizes = [records] if records else [n for n in range(load.batch_size, 0, -1) if load.batch_size % n == 0]
    first = replace(start, recompute=recompute[0], pieces=load.batch_size // sizes[0])
    rest = [replace(start, recompute=recompute[-1], pieces=load.batch_size // size) for size in sizes]
    return list(dict.fromkeys([first, *rest]))


def adapters(shapes: Iterable[Shape], rank: int) -> int:
    """Numbers in SparseLoRA's A and B of every linear; those that read the same input have an A each."""
    return sum(rank * (read.linears * read.inputs + read.outputs) for shape in shapes for read in shape.reads)


def _at_work(blocks: list[float], sizes: Sizes, load: Workload, way: Way) -> float:
    """The most that the backward of one block holds beside what all keep: the block again, and gradients in it."""
    most = 0.0
    for shape, kept in zip(sizes.shapes, blocks, strict=True):
        tokens = load.batch_size * load.length(shape)
        inner = max((read.share * max(read.inputs, read.outputs / read.linears) for read in shape.reads), default=0)
        most = max(most, (kept if way.recompute else 0) + tokens * (2 * WIDE * shape.width + 2 * WIDE * inner))
    return most


def _workspace(sizes: Sizes, way: Way) -> float:
    """Slices of a weight, as it is with its update and as its gradient; sums of experts with theirs."""
    largest = max((read.weights / read.linears for shape in sizes.shapes for read in shape.reads), default=0)
    fused = [shape.fused for shape in sizes.shapes]
    return 3 * WIDE * min(largest, SLICE) + way.width * (max(fused, default=0) if way.recompute else sum(fused))
