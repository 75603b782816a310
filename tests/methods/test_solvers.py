"""ADMM, ALPS and the refit: between SparseGPT and the optimum, exact in counts, equal to their authors where right.

Layer errors are of the undamped loss, on the inputs that the methods saw; all run with their defaults.
"""

from __future__ import annotations

import importlib
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_methods import PATTERNS, error, layer, recorded

from ressa.errors import RessaError
from ressa.methods import METHODS, get
from ressa.methods._refit import refit
from ressa.patterns import NofM, Unstructured, parse
from ressa.statistics import Gram

THEIRS = load_file(Path(__file__).parents[1] / "references" / "admm.safetensors")
DAMP = 0.1 * 191 / 192  # their share is of the mean diagonal, which counts input 77 as 0
ADMM = importlib.import_module("ressa.methods.admm")  # the package's own `admm` is the function
BOTH = pytest.mark.parametrize("name", ["admm", "alps"])


def small(seed: int) -> tuple[torch.Tensor, Gram]:
    """A random layer of 8 correlated inputs: few enough to try every mask."""
    return layer(seed, outputs=8, width=8)


def supports(pattern: NofM | Unstructured) -> list[tuple[int, ...]]:
    """Every choice of four of 8 inputs that the pattern allows one row."""
    if isinstance(pattern, Unstructured):
        return list(combinations(range(8), 4))
    pairs = list(combinations(range(4), 2))
    return [(*left, *(4 + j for j in right)) for left in pairs for right in pairs]


def optimum(weight_OI: torch.Tensor, inputs: Gram, pattern: NofM | Unstructured) -> torch.Tensor:
    """The weights of least error: each row's best over all masks (S), the least-squares answer for each (K stay)."""
    weight_OI, gram_II = weight_OI.double(), inputs.gram_II.double()
    stay_SK = torch.tensor(supports(pattern))
    outer_SKO = (weight_OI @ gram_II).T[stay_SK]
    answer_SKO = torch.linalg.solve(gram_II[stay_SK[:, :, None], stay_SK[:, None, :]], outer_SKO)
    best_O = (outer_SKO * answer_SKO).sum(dim=1).argmax(dim=0)  # what an answer takes off the error
    rows_O = torch.arange(len(weight_OI))
    return torch.zeros_like(weight_OI).scatter(1, stay_SK[best_O], answer_SKO[best_O, :, rows_O])


def slope(weight_OI: torch.Tensor, pruned_OI: torch.Tensor, inputs: Gram, damp: float) -> float:
    """The damped loss's gradient by the weights that are not zero: its largest entry, by that of the gradient at 0."""
    hessian_II = inputs.gram_II.double()
    hessian_II.diagonal().mul_(1 + damp)
    slope_OI = (pruned_OI.double() - weight_OI.double()) @ hessian_II
    return (slope_OI[pruned_OI != 0].abs().max() / (weight_OI.double() @ hessian_II).abs().max()).item()


def row_loss(weight_OI: torch.Tensor, pruned_OI: torch.Tensor, inputs: Gram, damp: float) -> torch.Tensor:
    """Each row's damped loss."""
    hessian_II = inputs.gram_II.double()
    hessian_II.diagonal().mul_(1 + damp)
    change_OI = pruned_OI.double() - weight_OI.double()
    return ((change_OI @ hessian_II) * change_OI).sum(dim=1)


def mean_errors(written: str, first: int) -> dict[str, float]:
    """The mean error of every solver, and of the optimum, over 50 small layers."""
    pattern, layers = parse(written), [small(first + seed) for seed in range(50)]
    names = ("magnitude", "wanda", "sparsegpt", "admm", "alps")
    pruned = {name: [get(name)(w, g, pattern) for w, g in layers] for name in names}
    pruned["optimum"] = [optimum(w, g, pattern) for w, g in layers]
    return {
        name: sum(error(w.double(), p.double(), g64(g)) for (w, g), p in zip(layers, all_, strict=True)) / 50
        for name, all_ in pruned.items()
    }


def g64(inputs: Gram) -> Gram:
    """The same inputs, to measure in float64."""
    inputs64 = Gram(len(inputs.products_II))
    inputs64.tokens, inputs64.products_II = 1.0, inputs.gram_II.double()
    return inputs64


@pytest.mark.parametrize("first", [0, 1000], ids=["layers from 0", "layers from 1000"])
@pytest.mark.parametrize("written", ["2:4", "50%"])
def test_the_mean_error_falls_from_magnitude_over_wanda_sparsegpt_admm_and_alps_to_the_optimum(written, first):
    mean = mean_errors(written, first)
    order = ["optimum", "alps", "admm", "sparsegpt", "wanda", "magnitude"]
    assert sorted(mean, key=mean.__getitem__) == order, mean
    assert mean["alps"] - mean["optimum"] < 0.7 * (mean["admm"] - mean["optimum"])


@pytest.mark.parametrize("pattern", [parse("2:4"), parse("50%")], ids=str)
def test_no_method_beats_the_optimum_on_any_layer(pattern):
    for seed in range(10):
        weight_OI, inputs = small(seed)
        best = row_loss(weight_OI, optimum(weight_OI, inputs, pattern), inputs, damp=0)
        for name in ("sparsegpt", "admm", "alps"):
            assert (row_loss(weight_OI, get(name)(weight_OI, inputs, pattern), inputs, 0) >= best * (1 - 1e-6)).all()


@pytest.mark.parametrize("pattern", [*map(parse, ("50%", "70%", "2:4", "1:4")), Unstructured(0.5, "matrix")], ids=repr)
def test_on_wider_layers_alps_beats_admm_and_admm_beats_sparsegpt(pattern):
    for seed in range(3):
        weight_OI, inputs = layer(seed)
        alps, admm, sparsegpt = (
            error(weight_OI, get(name)(weight_OI, inputs, pattern), inputs) for name in ("alps", "admm", "sparsegpt")
        )
        assert alps < 0.85 * admm
        assert admm < 0.75 * sparsegpt


@pytest.mark.parametrize("written", ["50%", "70%", "2:4", "1:4"])
def test_a_refit_of_wandas_choice_beats_sparsegpt_with_its_own(written):
    for seed in range(3):
        weight_OI, inputs = layer(seed)
        fitted_OI = refit(weight_OI, get("wanda")(weight_OI, inputs, parse(written)), inputs)
        sparsegpt_OI = get("sparsegpt")(weight_OI, inputs, parse(written))
        assert error(weight_OI, fitted_OI, inputs) < 0.95 * error(weight_OI, sparsegpt_OI, inputs)


@pytest.mark.parametrize("damp", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "admm"])
def test_after_a_refit_the_gradient_is_zero_wherever_a_weight_is_not(name, damp):
    weight_OI, inputs = layer(0)
    pruned_OI = get(name)(weight_OI, inputs, parse("2:4"))
    fitted_OI = refit(weight_OI, pruned_OI, inputs, damp=damp)
    assert slope(weight_OI, pruned_OI, inputs, damp) > 1e-4
    assert slope(weight_OI, fitted_OI, inputs, damp) < 1e-5
    assert torch.equal(fitted_OI == 0, pruned_OI == 0)


def test_alps_ends_where_a_refit_would_end():
    weight_OI, inputs = layer(1)
    assert slope(weight_OI, get("alps")(weight_OI, inputs, parse("2:4")), inputs, damp=0.01) < 1e-5


def test_a_refit_is_the_direct_solution_of_each_row():
    weight_OI, inputs = layer(2, outputs=3, width=24)
    pruned_OI = get("wanda")(weight_OI, inputs, parse("50%"))
    fitted_OI, gram_II = refit(weight_OI, pruned_OI, inputs, damp=0.0), inputs.gram_II.double()
    for row in range(3):
        stay = pruned_OI[row] != 0
        answer = torch.linalg.solve(gram_II[stay][:, stay], gram_II[stay] @ weight_OI[row].double())
        torch.testing.assert_close(fitted_OI[row, stay].double(), answer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("iterations", [0, 1, 5, 300])
@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_a_refit_leaves_no_row_worse_than_it_began(iterations, damp):
    weight_OI, _ = layer(3)
    few = Gram(160)
    few.add(torch.randn(40, 160, generator=torch.Generator().manual_seed(3)))  # fewer tokens than inputs: singular
    for name in ("wanda", "admm", "alps"):
        pruned_OI = get(name)(weight_OI, few, parse("2:4"))
        fitted_OI = refit(weight_OI, pruned_OI, few, damp=damp, iterations=iterations)
        before_O, after_O = (row_loss(weight_OI, weights, few, damp) for weights in (pruned_OI, fitted_OI))
        assert (after_O <= before_O * (1 + 1e-5) + 1e-9).all()


def test_a_refit_of_a_refit_and_of_dense_weights_changes_nothing_to_speak_of():
    weight_OI, inputs = layer(4)
    once_OI = refit(weight_OI, get("wanda")(weight_OI, inputs, parse("70%")), inputs)
    torch.testing.assert_close(refit(weight_OI, once_OI, inputs), once_OI, rtol=1e-4, atol=1e-4)
    assert torch.equal(refit(weight_OI, weight_OI, inputs), weight_OI)


def test_a_row_of_zeros_stays_one():
    weight_OI, inputs = layer(5)
    pruned_OI = get("wanda")(weight_OI, inputs, parse("2:4"))
    pruned_OI[3] = 0
    fitted_OI = refit(weight_OI, pruned_OI, inputs)
    assert (fitted_OI[3] == 0).all()
    assert torch.equal(fitted_OI == 0, pruned_OI == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@BOTH
def test_solvers_give_exactly_the_zeros_asked_for(name, pattern, dtype):
    weight_OI, inputs = layer(6)
    pruned_OI = get(name)(weight_OI.to(dtype), inputs, pattern)
    assert pruned_OI.dtype == dtype
    assert pattern.holds(pruned_OI)
    rows = 24 if isinstance(pattern, NofM) or pattern.group == "row" else 1
    each = 160 * (pattern.m - pattern.n) // pattern.m if isinstance(pattern, NofM) else pattern.dropped(3840 // rows)
    assert (pruned_OI == 0).sum() == rows * each


@pytest.mark.parametrize("pattern", [parse("0"), *PATTERNS[:5], Unstructured(0.5, "matrix")], ids=repr)
@BOTH
def test_an_input_that_is_always_zero_gets_no_weight_and_spoils_no_other(name, pattern):
    weight_OI, inputs = recorded(Gram)
    pruned_OI = get(name)(weight_OI, inputs, pattern)
    assert (pruned_OI[:, 77] == 0).all()
    assert pruned_OI.isfinite().all()
    assert pattern.holds(pruned_OI)
    assert refit(weight_OI, get("wanda")(weight_OI, inputs, pattern), inputs, damp=0.0).isfinite().all()


@BOTH
def test_with_nothing_to_prune_weights_stay_within_rounding(name):
    weight_OI, inputs = layer(7)
    torch.testing.assert_close(get(name)(weight_OI, inputs, parse("0")), weight_OI, rtol=1e-5, atol=1e-6)


@BOTH
def test_no_iterations_leave_wandas_choice(name):
    weight_OI, inputs = layer(8)
    pruned_OI = get(name, iterations=0)(weight_OI, inputs, parse("2:4"))
    assert torch.equal(pruned_OI == 0, get("wanda")(weight_OI, inputs, parse("2:4")) == 0)


@BOTH
def test_inputs_that_are_all_zero_are_refused(name):
    nothing = Gram(8)
    nothing.add(torch.zeros(5, 8))
    with pytest.raises(RessaError, match="all zero"):
        get(name)(torch.ones(2, 8), nothing, parse("2:4"))


@pytest.mark.parametrize(("name", "routine"), [("admm", "cholesky"), ("alps", "eigh")])
def test_linears_that_read_the_same_input_share_one_factorisation(name, routine, monkeypatch):
    calls, original = [], getattr(torch.linalg, routine)
    monkeypatch.setattr(torch.linalg, routine, lambda *given: calls.append(1) or original(*given))
    weight_OI, inputs = layer(9)
    alone_OI = get(name)(weight_OI, inputs, parse("2:4"))
    get(name)(weight_OI[:8], inputs, parse("50%"))
    assert torch.equal(get(name)(weight_OI, inputs, parse("2:4")), alone_OI), "what is shared is not changed"
    assert len(calls) == 1
    inputs.add(torch.randn(8, 160))
    get(name)(weight_OI, inputs, parse("2:4"))
    assert len(calls) == 2


@pytest.mark.parametrize(("pattern", "shares"), [(NofM(1, 4), ["3:4", "2:4", "1:4"]), (NofM(2, 4), ["3:4", "2:4"])])
def test_admm_goes_to_n_of_m_by_way_of_larger_n(pattern, shares):
    steps = [ADMM.looser(pattern, 1 - (1 - turn / 15) ** 3) for turn in range(1, 16)]
    assert list(dict.fromkeys(map(str, steps))) == shares
    assert steps[-1] == pattern
    assert ADMM.looser(Unstructured(0.7, "matrix"), 1.0) == Unstructured(0.7, "matrix")


@pytest.mark.parametrize("written", ["50%", "70%"])
def test_admm_returns_its_authors_weights_row_by_row_once_counts_are_cut_down_as_theirs(written, monkeypatch):
    weight_OI, inputs = recorded(Gram)
    monkeypatch.setattr(Unstructured, "dropped", cut_down)
    same(get("admm", damp=DAMP)(weight_OI, inputs, parse(written)), THEIRS[f"{written} row"])


def test_admm_returns_its_authors_weights_at_2_of_4_by_their_way_there(monkeypatch):
    weight_OI, inputs = recorded(Gram)
    monkeypatch.setattr(Unstructured, "dropped", cut_down)
    monkeypatch.setattr(ADMM, "looser", lambda pattern, share: SparingTwo(share))
    same(get("admm", damp=DAMP)(weight_OI, inputs, parse("2:4")), THEIRS["2:4"])
    monkeypatch.undo()
    assert error_of("admm", parse("2:4")) < error(weight_OI, THEIRS["2:4"], inputs), "ours is better"


def test_its_authors_program_turns_every_n_of_m_into_2_of_4():
    assert torch.equal(THEIRS["4:8"], THEIRS["2:4"])
    assert torch.equal(THEIRS["1:4"], THEIRS["2:4"]), "half as many zeros as asked for"
    weight_OI, inputs = recorded(Gram)
    assert error_of("admm", parse("4:8")) < 0.7 * error(weight_OI, THEIRS["4:8"], inputs)
    assert parse("1:4").holds(get("admm")(weight_OI, inputs, parse("1:4")))


def test_its_authors_program_has_no_schedule_where_the_matrix_competes(monkeypatch):
    weight_OI, inputs = recorded(Gram)
    pattern, theirs = Unstructured(0.5, "matrix"), THEIRS["50% matrix"]
    assert error_of("admm", pattern) < 0.95 * error(weight_OI, theirs, inputs)
    monkeypatch.setattr(ADMM, "looser", lambda pattern, share: pattern)  # all zeros from the first choice on
    same(get("admm", damp=DAMP)(weight_OI, inputs, pattern), theirs)


class SparingTwo:
    """Their way to 2:4: the two largest of four are spared; of the others a share goes, the lowest of the matrix."""

    def __init__(self, share: float) -> None:
        self.share = share

    def keep(self, score_OI: torch.Tensor) -> torch.Tensor:
        return Unstructured(0.5 * self.share, "matrix").keep(score_OI.masked_fill(NofM(2, 4).keep(score_OI), math.inf))


def cut_down(pattern: Unstructured, size: int) -> int:
    """How many of `size` weights become zero in theirs, at every choice."""
    return int(size * pattern.sparsity)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours == 0, theirs == 0)
    assert (ours - theirs).abs().max() < 1e-3


def error_of(name: str, pattern: NofM | Unstructured) -> float:
    """On the recorded layer."""
    weight_OI, inputs = recorded(Gram)
    return error(weight_OI, get(name)(weight_OI, inputs, pattern), inputs)


def test_solvers_need_the_gram_and_the_refit_is_no_method():
    assert METHODS["admm"].needs is METHODS["alps"].needs is Gram
    assert "refit" not in METHODS


# ---- few tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sparsegpt", "admm", "alps", "wanda+refit"])
def test_shrinkage_leaves_less_error_on_other_tokens_where_few_calibrate(name):
    """As many tokens as inputs; the error is that on the inputs' true Gram. With many tokens little changes."""
    random = torch.Generator().manual_seed(0)
    mix_II = torch.randn(64, 64, generator=random) / 8 + torch.eye(64)
    weight_OI, true_II = torch.randn(48, 64, generator=random), mix_II.T @ mix_II
    errors = {}
    for tokens in (64, 200_000):
        inputs = Gram(64)
        inputs.add(torch.randn(tokens, 64, generator=random) @ mix_II)
        for share in (None, 0.5):
            off_OI = get(name, shrinkage=share)(weight_OI, inputs, parse("50%")) - weight_OI
            errors[tokens, share] = ((off_OI @ true_II) * off_OI).sum().item()
            inputs.shrink(0.0)
    assert errors[64, 0.5] < 0.98 * errors[64, None]
    assert errors[200_000, 0.5] == pytest.approx(errors[200_000, None], rel=0.02)


def test_no_shrinkage_changes_no_bit_and_a_method_without_a_gram_has_none():
    weight_OI, inputs = small(0)
    assert torch.equal(
        get("alps", shrinkage=0.0)(weight_OI, inputs, parse("2:4")), get("alps")(weight_OI, inputs, parse("2:4"))
    )
    with pytest.raises(RessaError, match="'wanda' reads no Gram, so nothing shrinks: leave shrinkage out"):
        get("wanda", shrinkage=0.5)
