"""Methods that choose zeros and move no weight, DSnoT apart: as their authors' programs, where these are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_methods import recorded as recorded_as

from ressa import prune
from ressa.methods import METHODS, get
from ressa.patterns import NofM, Unstructured, parse
from ressa.statistics import Gram, InputNorm, Moments

REFERENCES = Path(__file__).parents[1] / "references"
LAYER, AUTHORS = (load_file(REFERENCES / f"{name}.safetensors") for name in ("authors", "scores"))
PATTERNS = [*map(parse, ("50%", "70%", "2:4", "4:8", "1:4", "3:5")), Unstructured(0.5, "matrix"), Unstructured(0.33)]
NAMES = [name for name, method in METHODS.items() if not issubclass(method.needs or object, Gram)]
AWAKE = [i for i in range(192) if not 72 <= i < 80]  # without input 77, which is always zero, and its group of eight


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


def exact(zeros: torch.Tensor, pattern) -> bool:
    """Whether each comparison group has just the zeros that the pattern asks for."""
    if isinstance(pattern, NofM):
        return bool((zeros.reshape(-1, pattern.m).sum(dim=1) == pattern.m - pattern.n).all())
    groups = zeros if pattern.group == "row" else zeros.reshape(1, -1)
    return bool((groups.sum(dim=1) == pattern.dropped(groups.shape[1])).all())


@pytest.mark.parametrize("written", ["50%", "70%", "2:4", "4:8", "1:4"])
def test_wanda_keeps_exactly_what_its_authors_keep(written):
    weight_OI, inputs = recorded_as(InputNorm)
    keep = LAYER[f"wanda_keeps {written}"]
    assert torch.equal(get("wanda")(weight_OI, inputs, parse(written)), weight_OI.where(keep, 0))


def test_magnitude_keeps_the_largest_weights():
    weight_OI = torch.tensor([[1.0, -4.0, 2.0, -3.0]])
    assert get("magnitude")(weight_OI, None, parse("2:4")).tolist() == [[0, -4, 0, -3]]
    assert get("magnitude")(weight_OI, None, parse("25%")).tolist() == [[0, -4, 2, -3]]


def test_wanda_prefers_a_small_weight_on_a_loud_input():
    loud = InputNorm(4)
    loud.add(torch.tensor([[10.0, 0.1, 1.0, 1.0]]))
    assert get("wanda")(torch.tensor([[1.0, -4.0, 2.0, -3.0]]), loud, parse("2:4")).tolist() == [[1, 0, 0, -3]]


def test_wanda_reads_the_same_norm_from_any_statistic():
    masks = []
    for statistic in (InputNorm, Moments, Gram):
        weight_OI, inputs = recorded_as(statistic)
        masks.append(get("wanda")(weight_OI, inputs, parse("2:4")) != 0)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


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
    if METHODS[name].needs and pattern == parse("50%"):
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
    data = tiny_data if METHODS[name].needs else None
    manifest = prune(llava_folder, tmp_path / "out", data=data, method=name, vision="50%", samples=6, batch_size=4)
    assert {part: entry["sparsity"] for part, entry in manifest["parts"].items() if entry["zeros"]} == {
        "vision": 0.5,
        "language": 0.5,
    }
