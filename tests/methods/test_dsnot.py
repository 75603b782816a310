"""DSnoT, which moves the zeros of another method: as its authors' program, where that is right."""

from __future__ import annotations

import pytest
import torch
from test_score_methods import AUTHORS, AWAKE, LAYER, PATTERNS, exact, layer, recorded

from ressa.errors import RessaError
from ressa.methods import get
from ressa.methods.dsnot import STARTS
from ressa.patterns import NofM, Unstructured, parse
from ressa.statistics import Moments

THEIRS = {"threshold": 0.1 / 256}  # their sums are over the 256 tokens of one sample, ours are means


def mean_error(weight_OI: torch.Tensor, pruned_OI: torch.Tensor, inputs: Moments) -> torch.Tensor:
    """By how much the mean of each output is off, (O,)."""
    return ((weight_OI - pruned_OI) @ inputs.mean_I).abs()


@pytest.mark.parametrize("start", ["wanda", "magnitude"])
@pytest.mark.parametrize("written", ["50%", "70%"])
def test_dsnot_swaps_exactly_what_its_authors_swap_when_no_swap_may_turn_the_error(written, start):
    weight_OI, inputs = recorded(AWAKE)
    pattern = Unstructured(int(184 * parse(written).sparsity) / 184)  # theirs rounds down
    keep = AUTHORS[f"dsnot_keeps {written} from {start}"]
    assert torch.equal(get("dsnot", start=start, **THEIRS)(weight_OI, inputs, pattern), weight_OI.where(keep, 0))
    assert not torch.equal(get(start)(weight_OI, inputs, pattern), weight_OI.where(keep, 0)), "nothing was swapped"


@pytest.mark.parametrize("written", ["2:4", "4:8"])
def test_dsnot_swaps_exactly_what_its_authors_swap_within_groups(written):
    weight_OI, inputs = recorded(AWAKE)
    keep = AUTHORS[f"dsnot_keeps {written} from wanda"]
    assert torch.equal(get("dsnot", **THEIRS)(weight_OI, inputs, parse(written)), weight_OI.where(keep, 0))
    assert not torch.equal(get("wanda")(weight_OI, inputs, parse(written)), weight_OI.where(keep, 0))


def test_dsnot_as_released_goes_on_after_the_error_has_turned_and_ends_worse_than_it_started():
    # Its flag for this is `type=bool`, true for any text but none; most rows then swap to and fro for all 50 cycles.
    weight_OI, inputs = recorded(AWAKE)
    x_TI = LAYER["inputs_x16"][..., AWAKE].float().reshape(-1, 184)
    theirs = weight_OI.where(AUTHORS["dsnot_released 50% from wanda"], 0)
    ours, start = (get(name)(weight_OI, inputs, parse("50%")) for name in ("dsnot", "wanda"))
    squares = [((weight_OI - pruned) @ x_TI.T).square().sum() for pruned in (theirs, ours, start)]
    assert ((theirs != 0) & (start == 0)).sum(dim=1).median() == 50
    assert squares[0] > 2 * squares[2]
    assert squares[1] < 1.1 * squares[2]


@pytest.mark.parametrize(("written", "start"), [("10%", "wanda"), ("4:8", "magnitude")])
def test_dsnot_keeps_its_counts_where_its_authors_run_out_of_weights_to_swap(written, start):
    # Their cursors run on past the last candidate: zeros are counted as regrown, kept weights are pruned.
    weight_OI, inputs = recorded(AWAKE)
    pattern = parse(written) if ":" in written else Unstructured(18 / 184)
    assert not exact(~AUTHORS[f"dsnot_released {written} from {start}"], pattern)
    assert exact(get("dsnot", start=start, **THEIRS)(weight_OI, inputs, pattern) == 0, pattern)


def test_dsnot_grows_no_weight_of_an_input_that_is_always_zero_as_its_authors_do_in_every_row():
    # Its share over its variance is 0 / 0, and NaN sorts as the largest.
    weight_OI, inputs = recorded(list(range(192)))
    assert AUTHORS["dsnot_released 50% from wanda, input 77 too"][:, 77].all()
    assert (get("dsnot")(weight_OI, inputs, parse("50%"))[:, 77] == 0).all()


def test_dsnot_does_not_start_from_sparsegpt_whose_zeros_its_authors_read_off_an_empty_matrix():
    # Nothing ever adds to their Hessian, so all scores are 0 and the first half of the inputs goes.
    keep = AUTHORS["dsnot_released 50% from sparsegpt"]
    assert not keep[:, :92].any()
    assert keep[:, 92:].all()
    weight_OI, inputs = recorded(AWAKE)
    with pytest.raises(RessaError, match=r"unknown start 'sparsegpt'.*known: magnitude, random, ria, wanda"):
        get("dsnot", start="sparsegpt")(weight_OI, inputs, parse("50%"))


@pytest.mark.parametrize(
    ("spread", "pruned"), [(1.0, [0, 0.5, 1, 0]), (3.0, [0.5, 0, 1, 0])], ids=["steady", "unsteady"]
)
def test_dsnot_grows_the_larger_share_unless_its_input_is_unsteady(spread, pruned):
    # Wanda keeps the last two. The shares 0.5 and 1 are lost, and -0.25 is the one to drop for either.
    mean_I, deviation_I = torch.tensor([1.0, 2.0, 3.0, -0.25]), torch.tensor([1.0, spread, 1.0, 2.0])
    inputs = Moments(4)
    inputs.add(torch.stack([mean_I - deviation_I, mean_I + deviation_I]))
    weight_OI = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert get("wanda")(weight_OI, inputs, parse("50%")).tolist() == [[0, 0, 1, 1]]
    assert get("dsnot")(weight_OI, inputs, parse("50%")).tolist() == [pruned]
    assert get("dsnot", cycles=0)(weight_OI, inputs, parse("50%")).tolist() == [[0, 0, 1, 1]]
    assert get("dsnot", threshold=1.5)(weight_OI, inputs, parse("50%")).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_dsnot_moves_zeros_within_rows_and_groups_and_never_adds_one(start, pattern):
    weight_OI, inputs = layer(0)
    before, after = (
        get(name, **s)(weight_OI, inputs, pattern) for name, s in ((start, {}), ("dsnot", {"start": start}))
    )
    assert not torch.equal(before, after)
    assert torch.equal(after, weight_OI.where(after != 0, 0))
    group = pattern.m if isinstance(pattern, NofM) else weight_OI.shape[1]
    assert torch.equal(*((pruned.reshape(-1, group) == 0).sum(dim=1) for pruned in (before, after)))


@pytest.mark.parametrize("group", ["row", "matrix"])
@pytest.mark.parametrize("start", STARTS)
def test_dsnot_brings_the_mean_of_no_output_further_off_and_of_all_together_closer(start, group):
    weight_OI, inputs = layer(1)
    pattern = Unstructured(0.5, group)
    before, after = (
        mean_error(weight_OI, get(name, **settings)(weight_OI, inputs, pattern), inputs)
        for name, settings in ((start, {}), ("dsnot", {"start": start}))
    )
    assert (after <= before).all()
    assert after.sum() < 0.5 * before.sum()
