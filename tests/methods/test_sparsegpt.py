"""SparseGPT: its authors' weights, exact answers where there are any, and better than choosing by a score."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_methods import AUTHORS, error, layer, recorded

from ressa.methods import get
from ressa.patterns import NofM, Unstructured, parse
from ressa.statistics import Gram


@pytest.mark.parametrize("written", ["2:4", "4:8", "1:4"])
def test_sparsegpt_returns_its_authors_weights(written):
    weight_OI, gram = recorded(Gram)
    theirs, ours = AUTHORS[f"sparsegpt {written}"], get("sparsegpt")(weight_OI, gram, parse(written))
    assert torch.equal(ours == 0, theirs == 0)
    assert (ours - theirs).abs().max() < 1e-3


def test_sparsegpt_returns_its_authors_weights_once_it_is_asked_for_as_many_zeros():
    # Theirs, asked for half, cuts each slab (24 x 128, 24 x 64) with `<=` at the (size / 2)-th score counted from 0,
    # one weight too many: 1537 and 769. Ours counts exactly, so it is asked for these 2306 of 4608.
    weight_OI, gram = recorded(Gram)
    theirs = AUTHORS["sparsegpt 50%"]
    assert [(slab == 0).sum().item() for slab in theirs.split(128, dim=1)] == [1537, 769]
    ours = get("sparsegpt")(weight_OI, gram, Unstructured(2306 / 4608, "matrix"))
    assert torch.equal(ours == 0, theirs == 0)
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("pattern", [parse("0"), parse("50%"), parse("2:4")], ids=str)
def test_an_input_that_is_always_zero_gets_no_weight_from_sparsegpt(pattern):
    weight_OI, gram = recorded(Gram)
    pruned = get("sparsegpt")(weight_OI, gram, pattern)
    assert (pruned[:, 77] == 0).all()
    assert pruned.isfinite().all()
    assert pattern.holds(pruned)


def test_sparsegpt_with_nothing_to_prune_changes_nothing():
    weight_OI, inputs = layer(2)
    assert torch.equal(get("sparsegpt")(weight_OI, inputs, parse("0")), weight_OI)


def test_sparsegpt_prunes_groups_wider_than_a_slab():
    weight_OI, inputs = layer(3, outputs=4, width=400)
    assert NofM(50, 200).holds(get("sparsegpt")(weight_OI, inputs, NofM(50, 200)))


def test_sparsegpt_does_not_depend_on_the_size_of_its_slabs_for_n_of_m(monkeypatch):
    weight_OI, inputs = layer(4)
    whole = get("sparsegpt")(weight_OI, inputs, parse("2:4"))
    monkeypatch.setattr(importlib.import_module("ressa.methods.sparsegpt"), "SLAB", 30)  # becomes 28: whole groups
    torch.testing.assert_close(get("sparsegpt")(weight_OI, inputs, parse("2:4")), whole, rtol=1e-4, atol=1e-5)


def test_sparsegpt_with_one_weight_to_drop_gives_the_least_squares_answer_for_the_weights_after_it():
    weight_OI, inputs = layer(5, outputs=1, width=12)
    weight_OI[0, 0] = 1e-3  # so that the first weight goes, and all others can make up for it
    pruned = get("sparsegpt", damp=1e-6)(weight_OI, inputs, Unstructured(1 / 12))
    gram = inputs.gram_II.double()
    rest = torch.linalg.solve(gram[1:, 1:], gram[1:] @ weight_OI[0].double())
    assert pruned[0, 0] == 0
    torch.testing.assert_close(pruned[0, 1:].double(), rest, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("written", ["50%", "70%", "2:4", "4:8"])
@pytest.mark.parametrize("group", ["row", "matrix"])
def test_sparsegpt_beats_wanda_and_wanda_beats_magnitude_on_the_mean_of_many_layers(written, group):
    mean = {}
    for name in ("magnitude", "wanda", "sparsegpt"):
        layers = [layer(seed) for seed in range(10)]
        mean[name] = sum(error(w, get(name)(w, g, parse(written, group)), g) for w, g in layers) / 10
    assert mean["sparsegpt"] < 0.9 * mean["wanda"]
    assert mean["wanda"] < mean["magnitude"]


def test_sparsegpt_without_damping_warns_where_it_needs_some_and_still_prunes():
    weight_OI, gram = recorded(Gram)  # has an input that is always zero
    with pytest.warns(UserWarning, match="needed damping"):
        pruned = get("sparsegpt", damp=0.0)(weight_OI, gram, parse("2:4"))
    assert torch.equal(pruned, get("sparsegpt", damp=0.01)(weight_OI, gram, parse("2:4")))


def test_sparsegpt_prunes_on_fewer_tokens_than_inputs():
    random = torch.Generator().manual_seed(0)
    weight_OI, gram = torch.randn(8, 64, generator=random), Gram(64)
    gram.add(torch.randn(3, 64, generator=random))
    pruned = get("sparsegpt")(weight_OI, gram, parse("2:4"))
    assert parse("2:4").holds(pruned)
    assert error(weight_OI, pruned, gram) < 0.5 * error(weight_OI, get("wanda")(weight_OI, gram, parse("2:4")), gram)
