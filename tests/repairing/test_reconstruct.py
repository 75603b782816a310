"""Block reconstruction: every block ends nearer to the dense one, zeros stay, and it can be all there is."""

from __future__ import annotations

import json

import pytest
import torch
from test_repair import assert_same_zeros, bytes_of, changed, kl_to_dense, prune_by_magnitude

import ressa
from ressa.calibration.samples import samples
from ressa.evaluation.blocks import block_errors
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.repairing.reconstruct import Passes, reconstruct, reconstructed_blocks


@pytest.mark.parametrize("family", ["llava", "blip2_opt", "blip2_t5", "instructblip_t5"])
def test_every_block_gives_outputs_nearer_to_the_dense_ones_and_zeros_stay(family, request, tiny_data, tmp_path):
    dense_folder = request.getfixturevalue(f"{family}_folder")
    pruned = prune_by_magnitude(dense_folder, tmp_path / "pruned", "2:4")
    (model, processor), (dense, _) = load(pruned), load(dense_folder)
    zeros = {name: weight == 0 for name, weight in model.named_parameters()}
    matrices = json.loads((pruned / "ressa.json").read_text())["matrices"]
    blocks = reconstructed_blocks(structure(model), matrices)
    batches = samples(tiny_data, processor, model.config, 12, batch_size=4)
    before = block_errors(model, dense, batches)
    told = reconstruct(model, dense, blocks, batches, Passes(epochs=15, lr=3e-3, seed=0))
    assert all(after < start for start, after in told.values()), told
    after = block_errors(model, dense, batches)
    last = list(before)[-1]
    assert after[last] < 0.6 * before[last]
    for name, weight in model.named_parameters():
        assert torch.equal(weight == 0, zeros[name]), name


def test_it_runs_before_training_or_alone_and_goes_on_from_where_it_was(llava_folder, tiny_data, tmp_path):
    pruned = prune_by_magnitude(llava_folder, tmp_path / "pruned")
    common = {"teacher": llava_folder, "data": tiny_data, "batch_size": 4, "reconstruct": 10, "reconstruct_lr": 3e-3}
    told = ressa.repair(pruned, tmp_path / "alone", steps=0, **common)
    assert (
        set(told["reconstructed"])
        == {
            *(f"model.vision_tower.encoder.layers.{i}" for i in (0, 1)),
            *(f"model.language_model.layers.{i}" for i in (0, 1)),
        }
        or len(told["reconstructed"]) == 4
    )
    assert_same_zeros(pruned, tmp_path / "alone")
    assert changed(pruned, tmp_path / "alone")
    far = [kl_to_dense(folder, llava_folder, tiny_data) for folder in (pruned, tmp_path / "alone")]
    assert far[1] < 0.7 * far[0]

    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("repair") and done == 2:
            raise KeyboardInterrupt

    seen: list[str] = []
    common["reconstruct"] = 2
    ressa.repair(pruned, tmp_path / "whole", steps=3, **common)
    with pytest.raises(KeyboardInterrupt):
        ressa.repair(pruned, tmp_path / "out", steps=3, progress=stop, **common)
    ressa.repair(pruned, tmp_path / "out", steps=3, progress=lambda done, total, what: seen.append(what), **common)
    assert all(what.startswith("repair") for what in seen), "blocks were not reconstructed again"
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_connector_that_is_one_linear_is_reconstructed_too(blip2_opt_folder, tiny_data, tmp_path):
    pruned = prune_by_magnitude(blip2_opt_folder, tmp_path / "pruned", connector=True)
    common = {"teacher": blip2_opt_folder, "data": tiny_data, "batch_size": 4, "steps": 0}
    told = ressa.repair(pruned, tmp_path / "out", reconstruct=5, reconstruct_lr=3e-3, **common)["reconstructed"]
    before, after = told["language_projection" if "language_projection" in told else "model.language_projection"]
    assert after < before
    assert_same_zeros(pruned, tmp_path / "out")
