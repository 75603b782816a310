"""random, RIA and DSnoT, which choose zeros and move no weight: as their authors' programs, where these are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ressa import prune
from ressa.errors import RessaError
from ressa.methods import get
from ressa.methods.dsnot import STARTS
from ressa.patterns import NofM, Unstructured, parse
from ressa.statistics import InputNorm, Moments

REFERENCES = Path(__file__).parent / "references"
LAYER, AUTHORS = (load_file(REFERENCES / f"{name}.safetensors") for name in ("authors", "scores"))
PATTERNS = [*map(parse, ("50%", "70%", "2:4", "4:8", "1:4", "3:5")), Unstructured(0.5, "matrix"), Unstructured(0.33)]
NAMES = ["random", "ria", "dsnot"]
AWAKE = [i for i in range(192) if not 72 <= i < 80]  # without input 77, which is always zero, and its group of eight
THEIRS = {"threshold": 0.1 / 256}  # their sums are over the 256 tokens of one sample, ours are means


def recorded(columns: list[int]) -> tuple[torch.Tensor, Moments]:
    """Those columns of the layer, and of the inputs, that the authors' programs were given."""
    inputs = Moments(len(columns))
    inputs.add(LAYER["inputs_x16"][..., columns].float() / 16)
    return LAYER["weight"][:, columns].float(), inputs


def layer(seed: int, outputs: int = 24, width: int = 160) -> tuple[torch.Tensor, Moments]:
    """A random layer whose inputs have means, so that DSnoT has something to swap for."""
    random = torch.Generator().manual_seed(seed)
    x_TI = torch.randn(2 * width, width, generator=random) * torch.rand(width, generator=random).exp()
    inputs = Moments(width)
    inputs.add(x_TI + torch.randn(width, generator=random))
    return torch.randn(outputs, width, generator=random), inputs


def mean_error(weight_OI: torch.Tensor, pruned_OI: torch.Tensor, inputs: Moments) -> torch.Tensor:
    """By how much the mean of each output is off, (O,)."""
    return ((weight_OI - pruned_OI) @ inputs.mean_I).abs()


def exact(zeros: torch.Tensor, pattern) -> bool:
    """Whether each comparison group has just the zeros that the pattern asks for."""
    if isinstance(pattern, NofM):
        return bool((zeros.reshape(-1, pattern.m).sum(dim=1) == pattern.m - pattern.n).all())
    groups = zeros if pattern.group == "row" else zeros.reshape(1, -1)
    return bool((groups.sum(dim=1) == pattern.dropped(groups.shape[1])).all())


@pytest.mark.parametrize("written", ["2:4", "4:8", "1:4"])
def test_ria_keeps_exactly_what_its_authors_keep(written):
    weight_OI, inputs = recorded(list(range(192)))
    keep = AUTHORS[f"ria_keeps {written}"]
    assert torch.equal(get("ria")(weight_OI, inputs, parse(written)), weight_OI.where(keep, 0))


@pytest.mark.parametrize(
    ("key", "zeros", "group"), [("50%", 2305, "matrix"), ("70%", 3226, "matrix"), ("50%", 2304, "row")]
)
def test_ria_keeps_what_its_authors_keep_once_it_is_asked_for_as_many_zeros(key, zeros, group):
    # Theirs cuts the matrix with `<=` at the (size x sparsity)-th score counted from 0: one weight too many.
    weight_OI, inputs = recorded(list(range(192)))
    keep = AUTHORS[f"ria_keeps {key} {group}"]
    assert (~keep).sum() == zeros
    assert torch.equal(get("ria")(weight_OI, inputs, Unstructured(zeros / 4608, group)), weight_OI.where(keep, 0))


def test_ria_counts_the_zeros_of_an_empty_row_which_its_authors_do_not():
    # 0 / 0 is NaN, which no threshold catches: theirs prunes 2305 weights besides the 192 of the empty row.
    weight_OI, inputs = recorded(list(range(192)))
    weight_OI[5] = 0
    assert (~AUTHORS["ria_keeps 50% matrix, row 5 empty"]).sum() == 2305 + 192
    assert (get("ria")(weight_OI, inputs, Unstructured(0.5, "matrix")) == 0).sum() == 2304


def test_ria_does_not_depend_on_the_unit_of_the_inputs():
    weight_OI, inputs = recorded(AWAKE)
    louder = InputNorm(len(AWAKE))
    louder.add(LAYER["inputs_x16"][..., AWAKE].float() * 16)
    pattern = Unstructured(0.5, "matrix")
    assert torch.equal(get("ria")(weight_OI, inputs, pattern), get("ria")(weight_OI, louder, pattern))


def test_ria_of_power_0_is_deaf_and_of_power_1_hears_more_than_of_a_half():
    weight_OI, inputs = torch.ones(2, 4), InputNorm(4)
    weight_OI[0] = torch.tensor([8.0, 4.0, 1.0, 1.0])
    inputs.add(torch.tensor([[1.0, 1.0, 3.0, 2.0]]))
    kept = [(get("ria", power=power)(weight_OI, inputs, NofM(2, 4)) != 0)[0].tolist() for power in (0.0, 0.5, 1.0)]
    assert kept == [[True, True, False, False], [True, True, False, False], [True, False, True, False]]


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


def test_random_is_drawn_from_the_seed_and_the_weight_and_from_nothing_else():
    first, second = (torch.randn(16, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    before = torch.get_rng_state()
    kept = [get("random", seed=seed)(w, None, parse("50%")) != 0 for w, seed in ((first, 0), (second, 0), (first, 1))]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(kept[0], get("random")(first, None, parse("50%")) != 0)
    for other in kept[1:]:
        assert 0.4 < (kept[0] == other).float().mean() < 0.6, "as many weights stay in both as by chance"
    assert torch.equal(kept[0].T, get("random")(first.T.contiguous().T, None, parse("50%")).T != 0), (
        "layout says nothing"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_random_draws_the_same_in_any_dtype_that_holds_the_weights(dtype):
    weight_OI = torch.arange(1.0, 65.0).reshape(4, 16)
    single, half = (get("random")(weight_OI.to(as_type), None, parse("2:4")) for as_type in (torch.float32, dtype))
    assert torch.equal(single, half.float())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_counts_are_exact_with_inputs_that_are_always_zero(name, pattern):
    weight_OI, inputs = layer(2)
    dead = Moments(160)
    dead.add((torch.randn(64, 160, generator=torch.Generator().manual_seed(0)) + 1) * (torch.arange(160) >= 10))
    for known in (inputs, dead):
        assert exact(get(name)(weight_OI, known, pattern) == 0, pattern)
    if name != "random" and pattern == parse("50%"):
        assert (get(name)(weight_OI, dead, pattern)[:, :10] == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_rows_and_columns_without_weights_count_as_zeros_that_were_asked_for(name, pattern):
    weight_OI, inputs = layer(3)
    weight_OI[[0, 7]], weight_OI[:, 5] = 0, 0
    pruned = get(name)(weight_OI, inputs, pattern)
    assert pruned.isfinite().all()
    full = [row for row in range(24) if row not in (0, 7)]
    assert exact((pruned if pattern == Unstructured(0.5, "matrix") else pruned[full]) == 0, pattern)


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_weight_pruned_again_only_gains_zeros(name):
    weight_OI, inputs = layer(4)
    half = get(name)(weight_OI, inputs, parse("2:4"))
    quarter = get(name)(half, inputs, parse("1:4"))
    assert ((half != 0) | (quarter == 0)).all()
    assert exact(quarter == 0, parse("1:4"))


@pytest.mark.parametrize("name", NAMES)
def test_a_score_method_leaves_the_weights_that_it_keeps_as_they_are(name):
    weight_OI, inputs = layer(5)
    pruned = get(name)(weight_OI, inputs, parse("2:4"))
    assert torch.equal(pruned, weight_OI.where(pruned != 0, 0))


@pytest.mark.parametrize("name", NAMES)
def test_score_methods_prune_a_model(name, llava_folder, tiny_data, tmp_path):
    data = None if name == "random" else tiny_data
    manifest = prune(llava_folder, tmp_path / "out", data=data, method=name, vision="50%", samples=6, batch_size=4)
    assert {part: entry["sparsity"] for part, entry in manifest["parts"].items() if entry["zeros"]} == {
        "vision": 0.5,
        "language": 0.5,
    }
