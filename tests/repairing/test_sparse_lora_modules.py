"""SparseLoRA on Conv1D and tied weights, with dropout, straight through, and under torch.compile."""

from __future__ import annotations

import peft
import pytest
import torch
from adapted_pair import IN, OUT, adapted, operands, pair, train_a_bit
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from ressa.errors import RessaError
from ressa.repairing.sparse_lora import SparseLoraConfig
from ressa.repairing.sparse_lora.masked_product import MaskedLinear, StraightThrough

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
