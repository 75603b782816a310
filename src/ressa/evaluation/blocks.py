"""How far each block's output is from the dense model's: where in the model pruning hurts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ressa.calibration.outputs import output_of, squared_error
from ressa.calibration.samples import samples
from ressa.calibration.tokens import token_weights
from ressa.calibration.walk import walk_both
from ressa.data.records import read_records
from ressa.model.load import machine_for
from ressa.model.streamed import Streamed, load_streamed
from ressa.model.structure import structure

HELD_OUT = 32  # records whose block outputs are compared


def held_out_errors(
    pruned: str, dense: str, data: str, *, split: str, seed: int, device: str, dtype: str
) -> dict[str, float]:
    """`block_errors` of a folder against its dense original, on records of `split` drawn by `seed`.

    In memory is what is outside of the blocks of both models, one block of each, and what waits between blocks.
    """
    original, processor, originals = load_streamed(dense)
    model, _, blocks = load_streamed(pruned)
    chosen = machine_for(original, device, dtype)
    if chosen.working != chosen.stored:
        for net in (original, model):
            net.float()
    records = read_records(data, split)
    batches = samples(records, processor, original.config, HELD_OUT, batch_size=8, seed=seed)
    return block_errors(blocks, originals, batches, device=chosen.block_device, autocast=chosen.autocast)


def block_errors(
    model: Any,
    dense: Any,
    batches: Sequence[Mapping[str, Any]],
    parts: Sequence[str] = ("vision", "language"),
    **where: Any,
) -> dict[str, float]:
    """The relative squared error of every block's output, |pruned - dense|² / |dense|², over the tokens that count.

    Both models run the same teacher-forced batches from end to end, so a block's error includes what the blocks before
    it did. A block that no batch enters is left out.

    Args:
        model, dense: in memory, or with their blocks in files.
        batches: what `calibration.samples` gives.
        where: `device` and `autocast`, as in `calibration.walk`.
    """
    errors: dict[str, float] = {}
    net = dense.net if isinstance(dense, Streamed) else dense
    weights = [token_weights(batch, net.config) for batch in batches]
    sides = [(one, structure(one.net if isinstance(one, Streamed) else one).blocks(parts)) for one in (model, dense)]
    for ours, theirs in walk_both(sides[0], sides[1], batches, propagate="dense", **where):
        far = size = 0.0
        for changed, call in zip(ours.calls, theirs.calls, strict=True):
            y, reference = output_of(ours, changed), output_of(theirs, call)
            error, whole = squared_error(y.to(reference.device), reference, weights[call.batch], theirs.block)
            far, size = far + error.item(), size + whole.item()
        errors[theirs.block.name] = far / size if size else 0.0
    return errors
