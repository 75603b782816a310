"""Patterns: what they keep, what they refuse, and how they are written."""

from __future__ import annotations

import doctest

import pytest
import torch

from ressa import patterns
from ressa.errors import RessaError
from ressa.patterns import NofM, Unstructured, parse


@pytest.fixture
def score_OI() -> torch.Tensor:
    return torch.rand(6, 40, generator=torch.Generator().manual_seed(0))


def test_examples_in_docstrings_are_true():
    assert doctest.testmod(patterns).failed == 0


@pytest.mark.parametrize(
    ("written", "pattern"),
    [
        ("2:4", NofM(2, 4)),
        (" 1 : 16 ", NofM(1, 16)),
        ("50%", Unstructured(0.5)),
        ("12.3 %", Unstructured(0.123)),
        ("0.5", Unstructured(0.5)),
        (0.5, Unstructured(0.5)),
        ("0", Unstructured(0.0)),
        (0, Unstructured(0.0)),
    ],
)
def test_patterns_are_read_as_people_write_them(written, pattern):
    assert parse(written) == pattern


@pytest.mark.parametrize(
    "written",
    ["3:2", "0:4", "4:4", "2:", "1.2", "1", "100%", "-0.1", "-5%", "foo", "", "nan", "nan%", "inf", "None", 60],
)
def test_what_is_no_pattern_is_refused_in_one_line_that_quotes_it(written):
    with pytest.raises(RessaError) as refusal:
        parse(written)
    assert f"'{written}'" in str(refusal.value)
    assert "2:4" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("build", [lambda: NofM(3, 2), lambda: NofM(0, 4), lambda: Unstructured(float("nan"))])
def test_a_pattern_that_cannot_be_cannot_be_built(build):
    with pytest.raises(RessaError):
        build()


def test_an_unknown_group_is_refused_with_the_nearest():
    with pytest.raises(RessaError, match="did you mean 'matrix'"):
        parse("50%", group="matrx")


def test_a_pattern_reads_back_from_its_own_text():
    for pattern in (NofM(2, 4), NofM(3, 16), *(Unstructured(k / 1000) for k in range(1000))):
        assert parse(str(pattern)) == pattern


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.51, 0.7, 0.99])
def test_unstructured_drops_the_lowest_of_each_row_and_counts_exactly(score_OI, sparsity):
    keep = Unstructured(sparsity).keep(score_OI)
    assert (~keep).sum(dim=1).tolist() == [round(40 * sparsity)] * 6
    lowest_kept_O1 = score_OI.masked_fill(~keep, torch.inf).amin(dim=1, keepdim=True)
    assert (score_OI[~keep] < lowest_kept_O1.expand_as(score_OI)[~keep]).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.51, 0.7])
def test_a_matrix_group_drops_the_lowest_of_all_and_counts_exactly(score_OI, sparsity):
    keep = Unstructured(sparsity, "matrix").keep(score_OI)
    assert (~keep).sum() == round(240 * sparsity)
    assert sparsity == 0 or score_OI[~keep].max() < score_OI[keep].min()
    assert sparsity == 0 or len(set((~keep).sum(dim=1).tolist())) > 1, "rows should differ, or it is the row group"


@pytest.mark.parametrize("width", [40, 7, 1])
@pytest.mark.parametrize("zeros", [0, 1, 3, 17, 100, 101, 123, 200])
def test_even_rows_differ_by_one_weight_and_the_matrix_counts_exactly(score_OI, zeros, width):
    score_OI = score_OI[:, :width]
    zeros %= score_OI.numel()
    pattern = Unstructured(zeros / score_OI.numel(), "even")
    keep = pattern.keep(score_OI)
    gone_O = (~keep).sum(dim=1)
    assert gone_O.sum() == zeros
    assert gone_O.max() - gone_O.min() <= 1
    lowest_kept_O1 = score_OI.masked_fill(~keep, torch.inf).amin(dim=1, keepdim=True)
    assert (score_OI[~keep] < lowest_kept_O1.expand_as(score_OI)[~keep]).all()
    assert pattern.holds(keep.float())
    slabs = [pattern.keep(score_OI[:, a : a + 3], start=a) for a in range(0, width, 3)]
    assert torch.equal((~torch.cat(slabs, dim=1)).sum(dim=1), gone_O)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 5), (1, 2)])
def test_n_of_m_keeps_the_highest_n_of_each_m_neighbours(score_OI, n, m):
    keep = NofM(n, m).keep(score_OI)
    for scores, kept in zip(score_OI.reshape(-1, m), keep.reshape(-1, m), strict=True):
        assert set(kept.nonzero().flatten().tolist()) == set(scores.topk(n).indices.tolist())


@pytest.mark.parametrize("pattern", [NofM(1, 4), Unstructured(0.5), Unstructured(0.5, "matrix"), Unstructured(0.7)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equal_scores_do_not_change_the_counts_and_the_first_go(pattern, levels):
    score_OI = torch.randint(levels, (6, 40), generator=torch.Generator().manual_seed(1)).float()
    keep = pattern.keep(score_OI)
    untied = pattern.keep(score_OI + torch.linspace(0, 0.5, 240).view(6, 40))  # a later one counts as larger
    assert torch.equal(keep, untied)
    assert pattern.holds(keep.float())


@pytest.mark.parametrize("group", ["row", "matrix"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.71])
def test_choosing_slab_by_slab_drops_as_many_as_choosing_at_once(score_OI, group, sparsity):
    pattern = Unstructured(sparsity, group)
    keep = torch.cat([pattern.keep(score_OI[:, a : a + 7], start=a) for a in range(0, 40, 7)], dim=1)
    groups = keep if group == "row" else keep.reshape(1, -1)
    assert ((~groups).sum(dim=1) == pattern.dropped(groups.shape[1])).all()


def test_a_width_that_m_does_not_divide_is_refused_by_name():
    with pytest.raises(RessaError, match=r"2:4 does not fit layers\.0\.proj: its 30 inputs") as refusal:
        NofM(2, 4).check((8, 30), "layers.0.proj")
    assert "\n" not in str(refusal.value)
    NofM(2, 4).check((30, 8), "layers.0.proj")
    Unstructured(0.5).check((8, 30), "layers.0.proj")
    with pytest.raises(RessaError):
        NofM(2, 4).keep(torch.rand(8, 30))


@pytest.mark.parametrize(
    "pattern",
    [NofM(2, 4), NofM(1, 8), Unstructured(0.5), Unstructured(0.5, "matrix"), Unstructured(0.33, "even")],
    ids=repr,
)
def test_holds_is_false_as_soon_as_one_zero_is_missing(score_OI, pattern):
    weight_OI = torch.where(pattern.keep(score_OI), 1.0, -0.0)
    assert pattern.holds(weight_OI)
    assert pattern.holds(weight_OI.bfloat16())
    weight_OI[tuple((weight_OI == 0).nonzero()[0])] = 1e-30
    assert not pattern.holds(weight_OI)


def test_holds_looks_at_groups_and_not_at_totals():
    half = torch.tensor([[0.0, 0, 0, 0, 1, 1, 1, 1]])
    assert Unstructured(0.5).holds(half)
    assert not NofM(2, 4).holds(half)
    assert Unstructured(0.5, "matrix").holds(half.view(2, 4))
    assert not Unstructured(0.5, "row").holds(half.view(2, 4))
    assert not NofM(1, 3).holds(torch.zeros(2, 4))
