"""How far each block's output is from the dense model's: where in the model pruning hurts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ressa.answering.generate import eval_mode
from ressa.calibration.outputs import outputs_of, squared_error
from ressa.calibration.samples import samples
from ressa.calibration.tokens import token_weights
from ressa.data.prompts import to_device
from ressa.data.records import read_records
from ressa.model.load import load_to_ask
from ressa.model.structure import structure

HELD_OUT = 32  # records whose block outputs are compared


def held_out_errors(
    pruned: str, dense: str, data: str, *, split: str, seed: int, device: str, dtype: str
) -> dict[str, float]:
    """`block_errors` of a folder against its dense original, on records of `split` drawn by `seed`."""
    original, processor, _ = load_to_ask(dense, device, dtype)
    model, _, _ = load_to_ask(pruned, device, dtype)
    records = read_records(data, split)
    batches = samples(records, processor, original.config, HELD_OUT, batch_size=8, seed=seed)
    return block_errors(model, original, batches)


def block_errors(
    model: Any, dense: Any, batches: Sequence[Mapping[str, Any]], parts: Sequence[str] = ("vision", "language")
) -> dict[str, float]:
    """The relative squared error of every block's output, |pruned - dense|² / |dense|², over the tokens that count.

    Both models run the same teacher-forced batches from end to end, so a block's error includes what the blocks before
    it did. A block that no batch enters is left out.

    Args:
        batches: what `calibration.samples` gives.
    """
    sums: dict[str, tuple[float, float]] = {}
    blocks, originals = (structure(net).blocks(parts) for net in (model, dense))
    for batch in batches:
        weights = token_weights(batch, dense.config)
        with eval_mode(model), eval_mode(dense), outputs_of(blocks) as ours, outputs_of(originals) as theirs:
            for net in (model, dense):
                net(**to_device(dict(batch), net), use_cache=False)
        for block in originals:
            for y, reference in zip(ours[block.name], theirs[block.name], strict=True):
                far, size = squared_error(y.to(reference.device), reference, weights, block)
                before = sums.get(block.name, (0.0, 0.0))
                sums[block.name] = before[0] + far.item(), before[1] + size.item()
    return {name: far / size if size else 0.0 for name, (far, size) in sums.items()}
