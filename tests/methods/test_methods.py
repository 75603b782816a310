"""What holds for every method: pure, exact in its counts, asked for by name with parameters of its own."""

from __future__ import annotations

import doctest
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ressa import methods
from ressa.errors import RessaError
from ressa.methods import METHODS, REFIT, get
from ressa.methods._refit import refit
from ressa.patterns import NofM, Unstructured, parse
from ressa.pruning.settings import Prune
from ressa.statistics import Gram, GramAndMoments, InputNorm, Moments

AUTHORS = load_file(Path(__file__).parents[1] / "references" / "authors.safetensors")
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


@pytest.mark.parametrize("name", METHODS)
def test_a_width_that_m_does_not_divide_is_refused(name):
    weight_OI, inputs = layer(6, width=30)
    with pytest.raises(RessaError, match="2:4 does not fit"):
        get(name)(weight_OI, inputs, parse("2:4"))


@pytest.mark.parametrize("name", METHODS)
def test_a_refit_keeps_the_zeros_of_any_method_and_lowers_its_error(name):
    weight_OI, inputs = layer(7)
    pruned, refitted = (get(called)(weight_OI, inputs, parse("2:4")) for called in (name, name + REFIT))
    assert torch.equal(pruned == 0, refitted == 0)
    assert error(weight_OI, refitted, inputs) <= error(weight_OI, pruned, inputs) * 1.0001
    if name in ("magnitude", "wanda", "ria", "random"):
        assert error(weight_OI, refitted, inputs) < 0.6 * error(weight_OI, pruned, inputs)


def test_methods_say_what_they_need():
    assert {method.needs for method in METHODS.values()} == {None, InputNorm, Moments, Gram}
    assert (METHODS["magnitude"].needs, METHODS["wanda"].needs, METHODS["dsnot"].needs) == (None, InputNorm, Moments)
    assert get("sparsegpt", damp=0.1).needs is Gram
    assert get("magnitude+refit").needs is Gram
    assert get("dsnot+refit", damp=0.1).needs is GramAndMoments


def test_the_help_of_prune_lists_every_method():
    words = next(f.metadata["help"] for f in fields(Prune) if f.name == "method")
    assert f": {', '.join(METHODS)};" in words


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
