"""`evaluate --against` and block errors hold one model at a time, and tell what two models in memory do."""

from __future__ import annotations

import errno
import gc
import os
import weakref

import numpy as np
import pytest
import torch

import ressa.evaluation.verb as verb
from ressa import evaluate, prune
from ressa.calibration.samples import samples
from ressa.errors import RessaError
from ressa.evaluation.blocks import block_errors, held_out_errors
from ressa.model.load import load
from ressa.model.streamed import Streamed


@pytest.fixture(scope="module")
def pruned(llava_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "out"
    prune(llava_folder, out, method="magnitude")
    return out


def test_the_first_model_is_gone_when_the_dense_one_is_loaded(pruned, llava_folder, tiny_data, monkeypatch):
    loaded, alive = verb._loaded, []

    def watched(model, runtime):
        gc.collect()
        assert not [one for one in alive if one() is not None]
        found = loaded(model, runtime)
        alive.append(weakref.ref(found[0]))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(verb, "_loaded", watched)
        scores = evaluate(pruned, data=tiny_data, against=llava_folder, max_new_tokens=2)
    assert len(alive) == 2
    in_memory = evaluate(load(pruned), data=tiny_data, against=load(llava_folder), max_new_tokens=2)
    assert scores["kl"] == in_memory["kl"] > 0
    assert scores["perplexity"] == in_memory["perplexity"]


def test_likelihoods_that_do_not_fit_on_the_disk_are_one_line_and_leave_nothing(
    pruned, llava_folder, tiny_data, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RessaError, match=r"cannot be kept there \(No space left on device\); name an out"):
        evaluate(pruned, data=tiny_data, against=llava_folder, max_new_tokens=2, out=tmp_path / "scores")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_block_errors_from_files_are_those_of_models_in_memory(pruned, llava_folder, tiny_data, monkeypatch):
    read, most = Streamed._read, []

    def counted(self, name, dense):
        read(self, name, dense)
        most.append(sum(not place.parameter.is_meta for places in self.places.values() for place in places))

    monkeypatch.setattr(Streamed, "_read", counted)
    how = {"split": "test", "seed": 0}
    found = held_out_errors(str(pruned), str(llava_folder), tiny_data, **how, device="cpu", dtype="auto")
    assert most
    assert max(most) <= 8, "the linears of one block, or of the last one that sees and the connector"
    (ours, processor), (dense, _) = load(pruned), load(llava_folder)
    batches = samples(tiny_data, processor, dense.config, 32, batch_size=8, **how)
    assert found == block_errors(ours, dense, batches)
    assert all(error > 0 for error in found.values())


def test_a_blocks_error_is_that_of_its_output_when_the_models_run_whole(pruned, llava_folder, tiny_data):
    (ours, processor), (dense, _) = load(pruned), load(llava_folder)
    (batch,) = samples(tiny_data, processor, dense.config, 1, batch_size=1, split="test")
    heard = {}
    for net in (ours, dense):
        last = net.model.language_model.layers[-1]
        last.register_forward_hook(lambda _module, _args, out, net=net: heard.__setitem__(net, out))
        with torch.no_grad():
            net(**batch)
    y, reference = heard[ours], heard[dense]
    y, reference = (one[0] if isinstance(one, tuple) else one for one in (y, reference))
    wanted = (y - reference).square().sum() / reference.square().sum()
    assert list(block_errors(ours, dense, [batch]).values())[-1] == pytest.approx(float(wanted), rel=1e-5)
