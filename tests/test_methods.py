"""Methods: equal to their authors' programs, pure, exact in their counts, and as good as they claim."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ressa import methods
from ressa.errors import RessaError
from ressa.methods import METHODS, REFIT, get
from ressa.methods.refit import refit
from ressa.patterns import NofM, Unstructured, parse
from ressa.statistics import Gram, GramAndMoments, InputNorm, Moments

AUTHORS = load_file(Path(__file__).parent / "references" / "authors.safetensors")
PATTERNS = [*map(parse, ("50%", "70%", "2:4", "4:8", "1:4", "3:5")), Unstructured(0.5, "matrix"), Unstructured(0.33)]


def recorded(statistic) -> tuple[torch.Tensor, InputNorm | Gram]:
    """The layer and the inputs that the authors' programs were given."""
    weight_OI, inputs = AUTHORS["weight"].float(), statistic(AUTHORS["weight"].shape[1])
    for sample in AUTHORS["inputs_x16"]:
        inputs.add(sample.float() / 16)
    return weight_OI, inputs


def layer(seed: int, outputs: int = 24, width: int = 160) -> tuple[torch.Tensor, GramAndMoments]:
    """A random layer with correlated inputs of unlike size."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=random) * torch.rand(width, generator=random).exp()
    inputs = GramAndMoments(width)  # for any method
    inputs.add(torch.randn(2 * width, width, generator=random) @ mix / width**0.5)
    return torch.randn(outputs, width, generator=random), inputs


def error(weight_OI: torch.Tensor, pruned_OI: torch.Tensor, inputs: Gram) -> float:
    """The layer's relative squared output error on its inputs."""
    change_OI = pruned_OI - weight_OI
    return (((change_OI @ inputs.gram_II) * change_OI).sum() / ((weight_OI @ inputs.gram_II) * weight_OI).sum()).item()


@pytest.mark.parametrize("written", ["50%", "70%", "2:4", "4:8", "1:4"])
def test_wanda_keeps_exactly_what_its_authors_keep(written):
    weight_OI, inputs = recorded(InputNorm)
    keep = AUTHORS[f"wanda_keeps {written}"]
    assert torch.equal(get("wanda")(weight_OI, inputs, parse(written)), weight_OI.where(keep, 0))


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
        weight_OI, inputs = recorded(statistic)
        masks.append(get("wanda")(weight_OI, inputs, parse("2:4")) != 0)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("name", [*METHODS, "wanda+refit"])
def test_every_method_gives_exactly_the_zeros_asked_for(name, pattern):
    weight_OI, inputs = layer(0)
    zeros = get(name)(weight_OI, inputs, pattern) == 0
    assert pattern.holds(~zeros)
    if isinstance(pattern, NofM):
        assert (zeros.reshape(-1, pattern.m).sum(dim=1) == pattern.m - pattern.n).all()
    else:
        groups = zeros if pattern.group == "row" else zeros.reshape(1, -1)
        assert (groups.sum(dim=1) == pattern.dropped(groups.shape[1])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_pure_and_keeps_dtype_and_layout(name, dtype):
    weight_OI, inputs = layer(1)
    weight_OI = torch.nn.Parameter(weight_OI.to(dtype))
    before, gram = weight_OI.detach().clone(), inputs.gram_II.clone()
    first, second = (get(name)(weight_OI, inputs, parse("2:4")) for _ in range(2))
    assert torch.equal(weight_OI, before)
    assert torch.equal(inputs.gram_II, gram)
    assert torch.equal(first, second)
    assert first.dtype == dtype
    assert first.is_contiguous()
    assert not first.requires_grad
    assert not torch.signbit(first[first == 0]).any(), "zeros are +0, so that a file's bytes are the same"


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


@pytest.mark.parametrize("name", METHODS)
def test_a_width_that_m_does_not_divide_is_refused(name):
    weight_OI, inputs = layer(6, width=30)
    with pytest.raises(RessaError, match="2:4 does not fit"):
        get(name)(weight_OI, inputs, parse("2:4"))


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


@pytest.mark.parametrize("name", METHODS)
def test_a_refit_keeps_the_zeros_of_any_method_and_lowers_its_error(name):
    weight_OI, inputs = layer(7)
    pruned, refitted = (get(called)(weight_OI, inputs, parse("2:4")) for called in (name, name + REFIT))
    assert torch.equal(pruned == 0, refitted == 0)
    assert error(weight_OI, refitted, inputs) <= error(weight_OI, pruned, inputs) * 1.0001
    if name in ("magnitude", "wanda", "ria", "random"):
        assert error(weight_OI, refitted, inputs) < 0.6 * error(weight_OI, pruned, inputs)


def test_methods_say_what_they_need():
    assert {name: method.needs for name, method in METHODS.items()} == {
        "magnitude": None,
        "random": None,
        "wanda": InputNorm,
        "ria": InputNorm,
        "dsnot": Moments,
        "sparsegpt": Gram,
        "admm": Gram,
        "alps": Gram,
    }
    assert get("sparsegpt", damp=0.1).needs is Gram
    assert get("magnitude+refit").needs is Gram
    assert get("dsnot+refit", damp=0.1).needs is GramAndMoments


def test_get_fixes_settings_ignores_none_and_refuses_what_a_method_does_not_have():
    weight_OI, inputs = layer(7)
    assert get("wanda", damp=None) is METHODS["wanda"]
    damped = get("sparsegpt", damp=1.0)(weight_OI, inputs, parse("2:4"))
    assert not torch.equal(damped, get("sparsegpt")(weight_OI, inputs, parse("2:4")))
    with pytest.raises(RessaError, match="method 'wanda' has no setting 'damp'"):
        get("wanda", damp=0.1)
    with pytest.raises(RessaError, match="did you mean 'wanda'"):
        get("wnda")


def test_examples_in_docstrings_are_true():
    assert doctest.testmod(methods).failed == 0


# ---- parameters in brackets ------------------------------------------------------------------------------------------


def test_parameters_in_brackets_are_those_of_the_function():
    torch.manual_seed(0)
    weight_OI, inputs = torch.randn(8, 16), Gram(16)
    inputs.add(torch.randn(64, 16))
    for spelled, same in (
        ("ria(power=0)", lambda: METHODS["ria"](weight_OI, inputs, NofM(2, 4), power=0.0)),
        ("admm(iterations=4, damp=1)", lambda: METHODS["admm"](weight_OI, inputs, NofM(2, 4), iterations=4, damp=1.0)),
        (
            "wanda + refit(damp=1)",
            lambda: refit(weight_OI, METHODS["wanda"](weight_OI, inputs, NofM(2, 4)), inputs, damp=1.0),
        ),
        ("random(seed=7)", lambda: METHODS["random"](weight_OI, None, NofM(2, 4), seed=7)),
    ):
        assert torch.equal(get(spelled, seed=1)(weight_OI, inputs, NofM(2, 4)), same()), spelled


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("ria(pwer=0.3)", "unknown parameter of ria 'pwer': did you mean 'power'"),
        ("ria(power=much)", "power: 'much' is not a number"),
        ("ria(power=-1)", "power: -1.0 must be finite and at least 0"),
        ("admm(iterations=2.5)", "iterations: 2.5 is not a whole number"),
        ("wanda(power=1)", "method 'wanda' has no parameters"),
        ("ria(power)", "not of the form power=0.3"),
        ("ria(power=0.3", "not of the form NAME"),
        ("ria+refit+refit", "only [+]refit may follow"),
        ("wanda+admm", "only [+]refit may follow"),
        ("rai(power=0.3)", "unknown method 'rai': did you mean 'ria'"),
        ("__import__('os')", "not of the form power=0.3"),
        ("ria(power=__import__('os'))", "not of the form NAME"),
    ],
)
def test_wrong_parameters_are_refused_in_a_line(spelled, message):
    with pytest.raises(RessaError, match=message):
        get(spelled)


def test_a_parameter_is_not_told_twice():
    with pytest.raises(RessaError, match="damp is told twice"):
        get("admm(damp=0.2)", damp=0.1)
    assert get("admm(damp=0.2)+refit", damp=0.1)
