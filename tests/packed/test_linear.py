"""PackedLinear beside nn.Linear with the same weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ressa.machine import found, native
from ressa.packed.format import VALUES, pack
from ressa.packed.linear import _LOCAL, PackedLinear


def pair(dtype=torch.float32, kind="same", shape=(24, 20), bias=True):
    """(nn.Linear with half of its weights zero, the same packed)."""
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], bias=bias).to(dtype).requires_grad_(False)
    linear.weight.mul_(torch.rand(shape) < 0.5)
    packed = pack(linear.weight, kind)
    tensors = packed.tensors()
    tensors.pop("weight")
    return linear, PackedLinear(packed.shape, tensors, bias=linear.bias, like=torch.empty(0, dtype=dtype))


@pytest.mark.formats
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (3,), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_that_of_a_linear_to_the_bit_where_torch_computes_in_that_dtype(bias, leading, dtype):
    linear, packed = pair(dtype, bias=bias)
    x = torch.randn(*leading, 20, dtype=dtype)
    if dtype in native("cpu", found()):
        assert packed(x).equal(linear(x))
    assert packed(x).dtype == dtype
    assert torch.allclose(packed(x).float(), linear(x).float(), atol=2e-2 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_runs_in_and_out_of_inference_mode_in_any_order(first):
    _LOCAL.__dict__.clear()
    linear, packed = pair()
    x = torch.randn(3, 20)
    for inference in (first, not first):
        with torch.inference_mode(inference):
            assert packed(x).equal(linear(x))


def test_layers_share_one_buffer_as_large_as_the_largest():
    _LOCAL.__dict__.clear()
    layers = [pair(shape=shape)[1] for shape in ((4, 20), (24, 20), (8, 20))]
    before = [layer(torch.ones(20)) for layer in layers]
    (buffer,) = _LOCAL.__dict__.values()
    assert buffer.numel() == 24 * 20
    assert all(layer(torch.ones(20)).equal(first) for layer, first in zip(layers, before, strict=True))


def test_the_weight_is_unpacked_and_not_kept():
    linear, packed = pair()
    assert packed.weight.equal(linear.weight)
    packed.weight.zero_()
    assert packed.weight.equal(linear.weight)
    assert {name for name, _ in packed.named_parameters()} == {"bias"}
    assert max(tensor.numel() for tensor in packed.buffers()) < linear.weight.numel()


def test_another_dtype_changes_what_is_computed_and_not_what_is_kept():
    linear, packed = pair(torch.bfloat16)
    packed.float()
    assert packed.get_buffer(VALUES).dtype == torch.bfloat16
    assert packed.weight.dtype == torch.float32
    assert packed(torch.ones(2, 20)).equal(linear.float()(torch.ones(2, 20)))
    assert packed.to("meta").get_buffer(VALUES).is_meta


def test_under_autocast_the_output_has_its_dtype():
    linear, packed = pair()
    x = torch.randn(3, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == linear(x).dtype == torch.bfloat16
        assert torch.allclose(packed(x), linear(x), atol=2e-2)


@pytest.mark.parametrize("kind", ["same", "int8", "int4"])
def test_compiling_breaks_no_graph(kind):
    model = nn.Sequential(pair(kind=kind)[1], nn.ReLU(), nn.Linear(24, 3)).requires_grad_(False)
    compiled, x = torch.compile(model, fullgraph=True, backend="eager"), torch.randn(4, 20)
    assert compiled(x).equal(model(x))
    torch._dynamo.reset()


def test_the_operator_says_what_it_gives_and_changes_nothing():
    packed = pair(kind="int4")[1]
    told = packed.packed
    arguments = (torch.randn(2, 3, 20), told.values, told.bitmask, told.scale, packed.bias, 24, 64)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.ressa.packed_linear.default, arguments, test_utils=checks)
