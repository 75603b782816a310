"""SparseLoRA against the formula written out, against finite differences, and as a guest of peft."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.model.precision import restore_zeros
from ressa.repairing.sparse_lora import SparseLoraConfig, SparseLoraLinear, masked_product
from ressa.repairing.sparse_lora.masked_product import MaskedLinear, StraightThrough, effective_weight

OUT, IN, RANK = 12, 8, 3


class Pair(nn.Module):
    """Two linears and one that is not targeted; both targets have about half of their weights at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(IN, OUT), nn.Linear(OUT, IN, bias=False), nn.Linear(IN, 2)
        for layer in (self.first, self.second):
            layer.weight.data[torch.rand_like(layer.weight) < 0.5] = 0

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))))


def pair(seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    return Pair()


def adapted(model: nn.Module, **settings):
    return peft.get_peft_model(model, SparseLoraConfig(rank=RANK, target_modules=["first", "second"], **settings))


def train_a_bit(model: nn.Module) -> None:
    """Give every trainable parameter a value away from its start."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def operands(dtype=torch.float64, tokens=(2, 5)):
    """x, weight, bias, A, B with gradients on; the weight has zeros, and one row of nothing else."""
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN, dtype=dtype)
    weight[torch.rand(OUT, IN) < 0.6] = 0
    weight[3] = 0
    others = (torch.randn(*tokens, IN, dtype=dtype), torch.randn(OUT, dtype=dtype))
    low_rank = (torch.randn(RANK, IN, dtype=dtype), torch.randn(OUT, RANK, dtype=dtype))
    x, bias, a, b = (t.requires_grad_() for t in (*others, *low_rank))
    return x, weight.requires_grad_(), bias, a, b


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


# ---- Conv1D and tied weights -----------------------------------------------------------------------------------------


def test_a_conv1d_of_gpt2_has_the_same_output_and_gradients_as_the_linear_it_is():
    linear_model, conv_model = pair(), pair()
    for name in ("first", "second"):
        layer = getattr(linear_model, name)
        conv = Conv1D(layer.out_features, layer.in_features)
        conv.weight = nn.Parameter(layer.weight.detach().mT.contiguous())
        conv.bias = nn.Parameter(torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().clone())
        setattr(conv_model, name, conv)
    found = []
    for model in (linear_model, conv_model):
        torch.manual_seed(1)
        wrapped = adapted(model)
        torch.manual_seed(2)
        train_a_bit(wrapped)
        x = torch.randn(2, 4, IN, requires_grad=True)
        wrapped(x).square().sum().backward()
        found.append([x.grad, *(p.grad for n, p in wrapped.named_parameters() if "sparselora" in n)])
        zeros = model.first.weight == 0
        merged = wrapped.merge_and_unload()
        assert torch.equal(merged.first.weight == 0, zeros)
        found[-1].append(merged.first.weight.mT if model is conv_model else merged.first.weight)
    assert isinstance(merged.first, Conv1D)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


class Tied(nn.Module):
    """Two linears with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(IN, IN), nn.Linear(IN, IN)
        self.first.weight.data[torch.rand(IN, IN) < 0.5] = 0
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_tied_linears_share_one_update_which_is_merged_once(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    old, biases = model.first.weight.detach().clone(), (model.first.bias, model.second.bias)
    wrapped = adapted(model)
    train_a_bit(wrapped)
    layer = wrapped.base_model.model.first
    a, b = layer.sparselora_A["default"], layer.sparselora_B["default"]
    assert len([p for p in wrapped.parameters() if p.requires_grad]) == 2
    x = torch.randn(4, IN)
    wrapped(x).square().sum().backward()
    mine, a.grad, b.grad = (a.grad, b.grad), None, None
    effective = old + layer.scaling["default"] * (b @ a) * (old != 0)
    y = linear(torch.tanh(linear(x, effective, biases[0])), effective, biases[1])
    torch.testing.assert_close(mine, torch.autograd.grad(y.square().sum(), (a, b)), rtol=1e-4, atol=1e-4)
    wrapped.save_pretrained(tmp_path)
    merged = wrapped.merge_and_unload()
    assert merged.first.weight is merged.second.weight
    torch.testing.assert_close(merged.first.weight.detach(), effective.detach())
    torch.testing.assert_close(merged(x), y)
    torch.manual_seed(0)
    torch.testing.assert_close(peft.PeftModel.from_pretrained(Tied(), tmp_path)(x), y)


def test_a_weight_tied_to_what_has_no_adapter_is_trained_but_not_merged():
    model = nn.ModuleDict({"embed": nn.Embedding(OUT, IN), "first": nn.Linear(IN, OUT)})
    model["embed"].weight = model["first"].weight
    before = model["embed"].weight.detach().clone()
    wrapped = peft.get_peft_model(model, SparseLoraConfig(rank=2, target_modules=["first"]))
    train_a_bit(wrapped)
    with pytest.raises(RessaError, match="tied to embed"):
        wrapped.merge_and_unload()
    assert torch.equal(model["embed"].weight, before)


# ---- dropout, straight-through, compilers ----------------------------------------------------------------------------


def test_dropout_is_a_dropout_of_the_inputs_of_the_update_alone():
    layer = adapted(pair(), dropout=0.5).base_model.model.first
    train_a_bit(layer)
    x, a, b = torch.randn(4, IN), layer.sparselora_A["default"], layer.sparselora_B["default"]
    weight, mask = layer.weight, (layer.weight != 0).float()
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    seen = nn.functional.dropout(torch.ones(IN), 0.5)
    update = linear(x * seen, layer.scaling["default"] * (b @ a) * mask)
    torch.testing.assert_close(y, linear(x, weight, layer.bias) + update)
    y.sum().backward()
    assert a.grad[:, seen == 0].eq(0).all()
    assert a.grad[:, seen != 0].ne(0).any()
    layer.eval()
    torch.testing.assert_close(layer(x), linear(x, weight + layer.scaling["default"] * (b @ a) * mask, layer.bias))
    means = torch.stack([layer.train()(x) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(means, layer.eval()(x), rtol=0.1, atol=0.1)


def test_dropout_under_gradient_checkpointing_draws_the_same_inputs_again():
    gradients = []
    for run in (lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=False)):
        model = adapted(pair(), dropout=0.3)
        torch.manual_seed(1)
        train_a_bit(model)
        torch.manual_seed(2)
        run(model.base_model.model, torch.ones(4, IN, requires_grad=True)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_straight_through_has_the_same_output_and_the_gradients_of_an_unmasked_update():
    mine, other = operands(), operands()
    y, z = (f.apply(*o, 0.7, torch.float64) for f, o in ((StraightThrough, mine), (MaskedLinear, other)))
    assert torch.equal(y, z)
    direction = torch.randn_like(y)
    y.backward(direction)
    z.backward(direction)
    for one, two in zip(mine[:3], other[:3], strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    x, _, _, a, b = operands()
    update = linear(linear(x, a), 0.7 * b)
    torch.testing.assert_close((mine[3].grad, mine[4].grad), torch.autograd.grad(update, (a, b), direction))
    assert not torch.allclose(mine[4].grad, other[4].grad)


def test_accumulated_gradients_of_two_halves_are_those_of_the_whole():
    model, x = adapted(pair()), torch.randn(6, IN)
    train_a_bit(model)
    found = []
    for pieces in ((x,), (x[:2], x[2:])):
        model.zero_grad()
        for piece in pieces:
            model(piece).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_torch_compile_gives_the_same_with_a_graph_break_at_each_adapted_linear():
    model, x = adapted(pair()), torch.randn(4, IN)
    train_a_bit(model)
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model.base_model.model, backend="aot_eager")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = compiled(x)
    weights = {model.base_model.model.get_submodule(name).weight.data_ptr() for name in ("first", "second")}
    large = {t.data_ptr() for t in kept if t.shape in ((OUT, IN), (IN, OUT))}
    assert large == weights, "no W_eff is kept, compiled or not"
    torch.testing.assert_close(y, model(x))
    y.square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters() if p.grad is not None], plain)
    assert torch._dynamo.explain(model.base_model.model)(x).graph_break_count >= 1
