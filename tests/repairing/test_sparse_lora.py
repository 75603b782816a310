"""SparseLoRA against the formula written out, against finite differences, and as a guest of peft."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from adapted_pair import IN, OUT, RANK, adapted, operands, pair, train_a_bit
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ressa.errors import RessaError
from ressa.model.precision import restore_zeros
from ressa.repairing.sparse_lora import SparseLoraConfig, SparseLoraLinear, masked_product
from ressa.repairing.sparse_lora.masked_product import MaskedLinear, effective_weight


def naive(x, weight, bias, a, b, scale, dtype):
    """The formula as autograd would do it, W_eff kept and all."""
    mask = (weight != 0).to(weight.dtype)
    return linear(x.to(dtype), (weight + scale * (b @ a) * mask).to(dtype), bias.to(dtype))


@pytest.fixture(params=[1 << 22, 2 * IN], ids=["one chunk", "many chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(masked_product, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
def test_gradients_equal_finite_differences():
    x, weight, bias, a, b = operands()
    # the weight is left out: at a zero the mask jumps, so no finite difference exists there
    assert torch.autograd.gradcheck(
        lambda x, bias, a, b: MaskedLinear.apply(x, weight.detach(), bias, a, b, 0.7, torch.float64), (x, bias, a, b)
    )


@pytest.mark.usefixtures("chunk")
def test_output_and_all_gradients_equal_the_naive_formula():
    mine, other = operands(), operands()
    y, z = MaskedLinear.apply(*mine, 0.7, torch.float64), naive(*other, 0.7, torch.float64)
    torch.testing.assert_close(y, z)
    direction = torch.randn_like(y)
    y.backward(direction)
    z.backward(direction)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_the_gradient_of_a_pruned_position_is_really_masked():
    x, weight, bias, a, b = operands()
    MaskedLinear.apply(x, weight, bias, a, b, 1.0, torch.float64).sum().backward()
    unmasked = torch.autograd.grad((x @ (weight + b @ a).T).sum(), b)[0]
    assert b.grad[3].eq(0).all(), "row 3 is all zeros, so nothing can reach its row of B"
    assert not torch.allclose(b.grad, unmasked)


def test_nothing_is_kept_for_the_backward_but_the_input_and_parameters():
    x, weight, bias, a, b = operands()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        MaskedLinear.apply(x, weight, bias, a, b, 0.7, torch.float64)
    assert set(kept) == {t.data_ptr() for t in (x, weight, a, b)}


def test_a_fresh_adapter_changes_no_bit_of_the_output():
    model, x = pair(), torch.randn(4, IN)
    before = model(x)
    assert torch.equal(adapted(model)(x), before)


def test_a_trained_adapter_equals_the_formula():
    model = pair()
    layer = adapted(model, alpha=6.0).base_model.model.first
    train_a_bit(layer)
    x, weight = torch.randn(4, IN), layer.weight
    delta = 6.0 / RANK * layer.sparselora_B["default"] @ layer.sparselora_A["default"]
    torch.testing.assert_close(layer(x), linear(x, weight + delta * (weight != 0), layer.bias))


def test_only_the_adapter_is_trained_and_biases_if_asked():
    names = {name for name, p in adapted(pair()).named_parameters() if p.requires_grad}
    assert all("sparselora_" in name for name in names)
    assert len(names) == 4
    with_bias = {n for n, p in adapted(pair(), bias="sparselora_only").named_parameters() if p.requires_grad}
    assert {name.removeprefix("base_model.model.") for name in with_bias - names} == {"first.base_layer.bias"}


def test_training_under_bf16_autocast_follows_the_naive_formula():
    results = []
    for function in (MaskedLinear.apply, naive):
        x, weight, bias, a, b = operands(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = function(x, weight, bias, a, b, 0.7, torch.bfloat16)
        y.float().square().mean().backward()
        results.append((y.dtype, y.float(), x.grad, bias.grad, a.grad, b.grad))
    (dtype, *mine), (_, *other) = results
    assert dtype == torch.bfloat16
    for one, two in zip(mine, other, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.02)


def test_a_layer_under_autocast_computes_in_bf16_and_keeps_its_input_as_it_came():
    layer = adapted(pair()).base_model.model.first
    x, kept = torch.randn(4, IN, requires_grad=True), []
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t),
    ):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert x.data_ptr() in kept, "a bf16 copy of x per linear would cost more than the shared float32 one"
    y.sum().backward()
    assert layer.sparselora_B["default"].grad.abs().sum() > 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    gradients = []
    for run in (lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=use_reentrant)):
        model = adapted(pair())
        torch.manual_seed(1)
        train_a_bit(model)
        x = torch.randn(4, IN, requires_grad=True)
        run(model.base_model.model, x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == 4
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_merging_keeps_every_zero_and_the_output_and_leaves_nothing_behind(dtype):
    model = pair().to(dtype)
    plain, x = copy.deepcopy(model), torch.randn(16, IN, dtype=dtype)
    wrapped = adapted(model)
    train_a_bit(wrapped)
    expected = wrapped(x)
    merged = wrapped.merge_and_unload()
    # W_eff and the merged weight are the same sum, cast once; only the product over the rows is cut otherwise
    torch.testing.assert_close(merged(x), expected)
    assert not torch.equal(merged(x), plain(x))
    assert [(n, p.dtype) for n, p in merged.named_parameters()] == [(n, p.dtype) for n, p in plain.named_parameters()]
    assert not any(isinstance(m, SparseLoraLinear) for m in merged.modules())
    assert not hasattr(merged, "peft_config")
    for name in ("first", "second"):
        assert torch.equal(getattr(merged, name).weight == 0, getattr(plain, name).weight == 0)
    assert torch.equal(merged.head.weight, plain.head.weight)


def test_merging_adds_in_float32_and_rounds_once():
    model = pair().to(torch.bfloat16)
    wide = copy.deepcopy(model).float()
    wrapped, wide_wrapped = adapted(model), adapted(wide)
    train_a_bit(wrapped)
    wide_wrapped.load_state_dict({k: v.float() for k, v in wrapped.state_dict().items()})
    assert torch.equal(
        wrapped.merge_and_unload().first.weight, wide_wrapped.merge_and_unload().first.weight.to(torch.bfloat16)
    )


def test_a_kept_weight_that_lands_on_zero_stays_kept():
    old, new = torch.tensor([[1.0, 0.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 1e-30, 3.0]])
    cast = restore_zeros(new, old, torch.float16)
    assert (cast != 0).tolist() == [[True, False, True, True]]
    assert cast[0, 3] == 3


def test_an_update_that_fills_a_zero_or_is_not_finite_is_refused():
    old = torch.tensor([[1.0, 0.0]])
    with pytest.raises(RessaError, match="fill 1 zeros"):
        restore_zeros(torch.tensor([[1.0, 0.5]]), old, torch.float32)
    with pytest.raises(RessaError, match="not finite"):
        restore_zeros(torch.tensor([[torch.nan, 0.0]]), old, torch.float32)


def test_infinite_adapters_cannot_reach_a_zero():
    weight = torch.tensor([[0.0, 1.0]])
    effective = effective_weight(weight, torch.full((1, 2), torch.inf), torch.ones(1, 1), 1.0, torch.float32)
    assert effective.tolist() == [[0.0, torch.inf]]


def test_merging_twice_is_refused():
    wrapped = adapted(pair())
    train_a_bit(wrapped)
    wrapped.merge_adapter()
    with pytest.raises(RessaError, match="merged already"):
        wrapped.merge_adapter()
    with pytest.raises(RessaError, match="merged already"):
        wrapped.merge_and_unload()
    with pytest.raises(RessaError, match="taken off"):
        wrapped.unmerge_adapter()
    other = adapted(pair())
    other.merge_and_unload()
    with pytest.raises(RessaError, match="no adapter left"):
        other.merge_and_unload()


def test_an_adapter_saved_by_peft_loads_into_a_fresh_model(tmp_path):
    wrapped, x = adapted(pair(), alpha=5.0, rank_pattern={"second": 2}, bias="sparselora_only"), torch.randn(4, IN)
    train_a_bit(wrapped)
    wrapped.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(pair(), tmp_path)
    assert loaded.base_model.model.second.sparselora_A["default"].shape == (2, OUT)
    assert torch.equal(loaded(x), wrapped(x))
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert not any("sparselora_" in name for name in trainable), "loaded for use, not for training"


def test_disabling_the_adapter_gives_the_pruned_model_back():
    model, x = pair(), torch.randn(4, IN)
    before = model(x)
    wrapped = adapted(model)
    train_a_bit(wrapped)
    assert not torch.equal(wrapped(x), before)
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(x), before)


def test_a_second_adapter_can_be_added_and_chosen_but_not_mixed():
    wrapped, x = adapted(pair()), torch.randn(4, IN)
    train_a_bit(wrapped)
    first = wrapped(x)
    wrapped.add_adapter("other", SparseLoraConfig(rank=2, target_modules=["first"]))
    assert torch.equal(wrapped(x), first)
    wrapped.set_adapter("other")
    assert not torch.equal(wrapped(x), first)
    wrapped.base_model.set_adapter(["default", "other"])
    with pytest.raises(RessaError, match="one adapter at a time"):
        wrapped(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "dropout must be at least 0"),
        ({"rank": 0}, "at least 1"),
        ({"rank_pattern": {"q": 0}}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_exact_are_refused(settings, message):
    with pytest.raises(RessaError, match=message):
        SparseLoraConfig(target_modules=["first"], **settings)


def test_only_linears_are_adapted():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    with pytest.raises(RessaError, match="'0' is a Embedding"):
        peft.get_peft_model(model, SparseLoraConfig(target_modules=["0"]))


def test_mixed_dtypes_without_autocast_are_refused_as_a_plain_linear_refuses_them():
    layer = adapted(pair().to(torch.bfloat16)).base_model.model.first
    with pytest.raises(RessaError, match="use autocast"):
        layer(torch.randn(4, IN))


def test_alpha_and_rank_can_differ_from_linear_to_linear():
    layers = adapted(pair(), alpha=6.0, rank_pattern={"second": 2}, alpha_pattern={"second": 10}).base_model.model
    assert layers.first.scaling["default"] == 6.0 / RANK
    assert layers.second.scaling["default"] == 10 / 2
