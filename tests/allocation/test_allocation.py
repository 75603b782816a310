"""Allocations: budgets met to the weight, their authors' ratios where these are right, and files that read back."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ressa.allocation
from ressa.allocation import budget, by_modality
from ressa.allocation.arithmetic import arithmetic
from ressa.allocation.budget import MOST, whole
from ressa.allocation.dlp import dlp, median
from ressa.allocation.ecoflap import ecoflap
from ressa.allocation.file import read_allocation, write_allocation
from ressa.allocation.magnitude import magnitude
from ressa.allocation.owl import outliers, owl
from ressa.allocation.uniform import uniform
from ressa.errors import RessaError
from ressa.methods import METHODS, get
from ressa.patterns import Unstructured

AUTHORS = load_file(Path(__file__).parents[1] / "references" / "owl.safetensors")
SHARES = {"uniform": uniform, "arithmetic": arithmetic, "owl": owl, "dlp": dlp, "ecoflap": ecoflap}


def counts(sparsity, weights) -> dict[str, int]:
    return {name: round(share * weights[name]) for name, share in sparsity.items()}


def blocks_of_theirs() -> list[list[torch.Tensor]]:
    """The Wanda scores of the five blocks that the authors' programs saw."""
    names = [("up", "norm_up"), ("down", "norm_down")]
    return [[AUTHORS[w][i].float().abs() * AUTHORS[n][i] for w, n in names] for i in range(5)]


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [ressa.allocation, budget, by_modality])
def test_examples_in_docstrings_are_true(module):
    assert doctest.testmod(importlib.import_module(module.__name__)).failed == 0


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", SHARES)
def test_the_zeros_of_all_blocks_add_up_to_the_budget_to_the_weight(name, seed):
    draw = random.Random(seed)
    weights = {f"b{i}": draw.randint(50, 5000) for i in range(draw.randint(1, 12))}
    scores = {block: draw.choice([0.0, draw.random(), 100 * draw.random()]) for block in weights}
    budget = round(draw.choice([0.003, 0.05, 0.5, 0.7, 0.95]) * sum(weights.values()))
    found = counts(SHARES[name](scores, weights, budget), weights)
    assert sum(found.values()) == budget
    even = budget / sum(weights.values())
    most = {"uniform": even, "ecoflap": even + 0.1}.get(name, 1)
    for block, n in weights.items():
        assert 0 <= found[block] <= math.ceil(max(min(most, MOST), even) * n)


@pytest.mark.parametrize("score", [0.0, 3.5])
@pytest.mark.parametrize("name", [name for name in SHARES if name != "arithmetic"])
def test_equal_scores_share_out_evenly(name, score):
    weights = {"a": 700, "b": 100, "c": 300}
    found = counts(SHARES[name](dict.fromkeys(weights, score), weights, 550), weights)
    assert found == {"a": 350, "b": 50, "c": 150}


def test_arithmetic_rises_in_equal_steps_from_the_first_block_to_the_last():
    found = arithmetic({}, dict.fromkeys("zaby", 1000), 2400, spread=0.15)
    assert list(found.values()) == [0.45, 0.55, 0.65, 0.75]
    assert list(found) == list("zaby")
    assert arithmetic({}, dict.fromkeys("ab", 1000), 1000, spread=0) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(("share", "sign"), [(owl, -1), (dlp, 1), (ecoflap, -1)])
def test_which_way_scores_point(share, sign):
    sparsity = share({"a": 1.0, "b": 2.0, "c": 4.0}, dict.fromkeys("abc", 1000), 1500)
    assert sorted(sparsity, key=lambda name: sign * sparsity[name]) == ["a", "b", "c"]
    assert max(sparsity.values()) > min(sparsity.values()) + 0.05


@pytest.mark.parametrize(("share", "reach"), [(owl, 0.08), (dlp, 0.15)])
def test_the_spread_is_all_there_is_between_the_first_and_the_last(share, reach):
    weights = {"a": 10_000, "b": 30_000, "c": 20_000}
    sparsity = share({"a": 1.0, "b": 2.0, "c": 9.0}, weights, 36_000)
    assert max(sparsity.values()) - min(sparsity.values()) == pytest.approx(2 * reach, abs=1e-3)
    assert share({"a": 1.0, "b": 2.0, "c": 9.0}, weights, 36_000, spread=0.0) == dict.fromkeys(weights, 0.6)


@pytest.mark.parametrize("share", [owl, dlp])
def test_less_sparsity_than_spread_never_gets_below_none(share):
    weights = dict.fromkeys("abcd", 1000)
    found = counts(share({"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}, weights, 200), weights)
    assert min(found.values()) == 0
    assert sum(found.values()) == 200


@pytest.mark.parametrize("share", [owl, dlp, ecoflap])
def test_scores_that_are_no_numbers_are_refused(share):
    with pytest.raises(RessaError, match="NaN"):
        share({"a": float("nan"), "b": 1.0}, {"a": 10, "b": 10}, 10)


def test_a_block_is_never_pruned_away_and_too_many_zeros_are_refused():
    found = counts(ecoflap({"a": 0.0, "b": 1.0}, {"a": 1000, "b": 1000}, 1900), {"a": 1000, "b": 1000})
    assert found == {"a": 990, "b": 910}
    with pytest.raises(RessaError, match="do not fit"):
        whole({"a": 5.0}, 5, {"a": 4})


# ---- the authors' ----------------------------------------------------------------------------------------------------


def test_owl_counts_the_outliers_that_its_authors_count():
    assert [outliers(scores) for scores in blocks_of_theirs()] == pytest.approx(AUTHORS["outliers"].tolist(), abs=1e-12)


@pytest.mark.parametrize("sparsity", [50, 70])
def test_owl_gives_its_authors_ratios(sparsity):
    weights = dict.fromkeys("abcde", 2 * 48 * 32)
    scores = dict(zip("abcde", AUTHORS["outliers"].tolist(), strict=True))
    found = owl(scores, weights, round(sparsity / 100 * sum(weights.values())))
    theirs = (1 - AUTHORS[f"keep {sparsity}%"]).tolist()
    assert list(found.values()) == pytest.approx(theirs, abs=1 / 3072)


def test_owl_does_not_keep_more_than_everything_as_its_authors_do_at_5_per_cent():
    # Theirs asks blocks for up to 102 %, and prunes these by 1 %: 4.5 % are zero in the end
    assert AUTHORS["keep 5%"].max() > 1.01
    weights = dict.fromkeys("abcde", 3072)
    found = owl(dict(zip("abcde", AUTHORS["outliers"].tolist(), strict=True)), weights, 768)
    assert sum(counts(found, weights).values()) == 768
    assert min(found.values()) == 0


def test_dlp_gives_its_authors_ratios_from_their_means_and_the_papers_from_medians():
    weights, blocks = dict.fromkeys("abcde", 3072), blocks_of_theirs()
    means = [torch.cat([s.flatten() for s in scores]).mean().item() for scores in blocks]
    found = dlp(dict(zip("abcde", means, strict=True)), weights, round(0.7 * 5 * 3072))
    assert list(found.values()) == pytest.approx((1 - AUTHORS["dlp keep 70%"]).tolist(), abs=1 / 3072)
    assert median([torch.tensor([[5.0, 1.0]]), torch.tensor([[2.0]])]) == 2.0


def test_ecoflap_gives_its_authors_ratios_where_they_meet_their_budget():
    found = ecoflap({"a": 1.0, "b": 2.0, "c": 5.0, "d": 2.0}, dict.fromkeys("abcd", 3000), 6000)
    assert list(found.values()) == pytest.approx([0.56, 0.52, 0.40, 0.52], abs=1e-6)


def test_ecoflap_meets_the_budget_where_its_authors_keep_two_weights_more():
    # ylsung/ECoFLaP 59dac0a: what is to be taken off too full groups is added, 12290 for 12288
    theirs = [0.5517578125, 0.5035806894302368, 0.4407551884651184, 0.5035806894302368]
    assert round(sum(6144 * (1 - sparsity) for sparsity in theirs)) == 12290
    weights = dict.fromkeys("abcd", 6144)
    found = ecoflap({"a": 1.0, "b": 2.0, "c": 3.3, "d": 2.0}, weights, 12288)
    assert list(found.values()) == pytest.approx(theirs, abs=3 / 6144)
    assert sum(counts(found, weights).values()) == 12288


def test_ecoflap_hands_on_what_a_full_block_cannot_keep():
    weights = {"a": 4096, "b": 4096, "c": 800, "d": 4096}
    scores = {"a": 1 / 4096, "b": 2 / 4096, "c": 500 / 800, "d": 2 / 4096}
    found = ecoflap(scores, weights, 6544)
    assert found["c"] == 0
    assert [found[name] for name in "abd"] == pytest.approx([0.5593, 0.5190, 0.5190], abs=1e-3)


# ---- what a method makes of an exact count ---------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [200, 301])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_matrix_the_zeros_it_is_allotted(method, zeros):
    draw, run, pattern = torch.Generator().manual_seed(0), get(method), Unstructured(zeros / 480, "even")
    inputs = run.needs and run.needs(24)
    if inputs:
        inputs.add(torch.randn(60, 24, generator=draw) @ torch.randn(24, 24, generator=draw))
    gone_O = (run(torch.randn(20, 24, generator=draw), inputs, pattern) == 0).sum(dim=1)
    assert gone_O.sum() == zeros
    assert gone_O.tolist() == pattern.dropped_O(20, 24).tolist()


# ---- magnitude over many matrices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.6])
def test_magnitude_takes_the_smallest_of_all_matrices(share, dtype):
    draw = torch.Generator().manual_seed(0)
    matrices = {f"m{i}": (torch.randn(8, 6 + i, generator=draw) * (i + 1)).to(dtype) for i in range(3)}
    sizes = {name: weight.numel() for name, weight in matrices.items()}
    gone = round(share * sum(sizes.values()))
    everything = torch.cat([weight.flatten() for weight in matrices.values()]).float().abs()
    order = everything.argsort(stable=True)[:gone]
    starts = [0, *torch.tensor(list(sizes.values())).cumsum(0).tolist()]
    wanted = [int(((order >= a) & (order < b)).sum()) for a, b in pairwise(starts)]
    assert list(counts(magnitude(matrices, sizes, gone), sizes).values()) == wanted


def test_magnitude_counts_ties_exactly_and_leaves_every_matrix_a_weight():
    matrices = {"a": torch.ones(2, 4), "b": torch.full((2, 4), 0.1), "c": torch.zeros(2, 4)}
    sizes = dict.fromkeys("abc", 8)
    assert counts(magnitude(matrices, sizes, 17), sizes) == {"a": 3, "b": 7, "c": 7}
    with pytest.raises(RessaError, match="more than 3 matrices can hold"):
        magnitude(matrices, sizes, 22)


# ---- by modality -----------------------------------------------------------------------------------------------------


def test_a_dense_part_is_made_up_for_by_the_other_as_the_formula_says():
    weights = {"vision": 980_001, "language": 6_476_003}
    found = by_modality.by_modality(0.5, {"vision": 0.0}, weights)
    assert sum(found.values()) == round(0.5 * 7_456_004)
    assert found["language"] / weights["language"] == pytest.approx(0.5 * 7_456_004 / 6_476_003, abs=1e-6)
    three = by_modality.by_modality(0.5, {"connector": 0.2}, {"vision": 200, "connector": 100, "language": 700})
    assert three == {"vision": 107, "connector": 20, "language": 373}


@pytest.mark.parametrize(
    ("total", "told", "line"),
    [
        (0.9, {"vision": 0.0}, r"total 90% with vision at 0% needs 112\.5% of language: .* less than 80\.0%"),
        (0.8, {"vision": 0.0}, r"needs 100\.0% of language"),
        (0.1, {"vision": 0.9}, r"total 10% with vision at 90% needs -10\.0% of language: say at least 18\.0%"),
    ],
)
def test_what_the_other_part_cannot_make_up_for_is_refused_in_one_line(total, told, line):
    with pytest.raises(RessaError, match=line) as refusal:
        by_modality.by_modality(total, told, {"vision": 200, "language": 800})
    assert "\n" not in str(refusal.value)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_allocation_reads_back_bit_by_bit(tmp_path):
    sparsity = {f"b{i}": random.Random(i).random() for i in range(100)} | {"none": 0.0, "third": 1 / 3}
    write_allocation(tmp_path / "a.json", {"unit": "block", "sparsity": sparsity, "name": "owl"})
    saved = read_allocation(tmp_path / "a.json")
    assert (saved.unit, saved.sparsity) == ("block", sparsity)
    assert json.loads((tmp_path / "a.json").read_text()).keys() == {"unit", "sparsity"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[1]", "is no allocation"),
        ('{"unit": "block"}', "is no allocation"),
        ('{"unit": "block", "sparsity": {}}', "is no allocation"),
        ('{"unit": "blok", "sparsity": {"a": 0.5}}', "unknown unit 'blok': did you mean 'block'"),
        ('{"unit": "block", "sparsity": {"a": 1.0}}', r"sparsity of a is 1\.0"),
        ('{"unit": "block", "sparsity": {"a": NaN}}', "sparsity of a is nan"),
        ('{"unit": "block", "sparsity": {"a": "half"}}', "sparsity of a is 'half'"),
        ('{"allocation": {"name": "uniform"}}', "pruned uniformly"),
    ],
)
def test_a_file_that_is_no_allocation_is_refused_in_one_line(text, told, tmp_path):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(RessaError, match=told) as refusal:
        read_allocation(tmp_path / "a.json")
    assert str(refusal.value).startswith(str(tmp_path / "a.json"))
    assert "\n" not in str(refusal.value)
