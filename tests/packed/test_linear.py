"""PackedLinear beside nn.Linear with the same weight."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from ressa.machine import found, native
from ressa.packed import native as kernels
from ressa.packed.format import BITMASK, VALUES, pack
from ressa.packed.linear import _LOCAL, PackedLinear

READY = pytest.mark.skipif(kernels.chosen() is None, reason="no kernels for this processor, or none were built")


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


@pytest.mark.parametrize("tokens", [1, 12])
@pytest.mark.parametrize("ready", [False, pytest.param(True, marks=READY)])
def test_an_input_of_another_width_is_refused_as_a_linear_does(ready, tokens):
    layer = pair(torch.bfloat16)[1]
    assert not ready or layer.prepare()
    with pytest.raises(RuntimeError, match="a linear of 20 inputs is given 8"):
        layer(torch.randn(tokens, 8))


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


# ---- prepared for the kernels ----------------------------------------------------------------------------------------


def prepared(dtype=torch.bfloat16, kind="same", **how):
    linear, packed = pair(dtype, kind, **how)
    assert packed.prepare()
    return linear, packed


@READY
@pytest.mark.formats
@pytest.mark.parametrize("kind", ["same", "int8", "int4"])
@pytest.mark.parametrize("leading", [(0,), (), (3,), (2, 4), (9,), (2, 5)])
def test_few_tokens_are_near_and_many_are_to_the_bit_what_they_are_unpacked(kind, leading):
    plain, ready = pair(torch.bfloat16, kind)[1], prepared(kind=kind)[1]
    x = torch.randn(*leading, 20, dtype=torch.bfloat16)
    found, wanted = ready(x), plain(x)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if x[..., 0].numel() > kernels.TOKENS:
        assert found.equal(wanted)
    assert torch.allclose(found.float(), wanted.float(), atol=2e-2)


@READY
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_tokens_of_another_dtype_keep_it(dtype):
    linear, packed = prepared()
    x = torch.randn(3, 20, dtype=dtype)
    assert packed(x).dtype == dtype
    assert torch.allclose(packed(x).double(), linear.double()(x.double()), atol=2e-3)


@READY
def test_rows_of_a_view_are_read_where_they_lie():
    linear, packed = prepared()
    x = torch.randn(3, 40, dtype=torch.bfloat16)[:, ::2]
    assert packed(x).equal(packed(x.clone()))
    assert torch.allclose(packed(x).float(), linear(x).float(), atol=2e-2)


@READY
@pytest.mark.parametrize("kind", ["same", "int8", "int4"])
def test_nothing_is_kept_beside_the_prepared_weight_and_all_is_given_back(kind):
    plain, ready = pair(torch.bfloat16, kind)[1], prepared(kind=kind)[1]
    assert {name for name, buffer in ready.named_buffers() if buffer.numel()} == {"prepared"}
    assert ready.weight.equal(plain.weight)
    assert ready.state_dict().keys() == plain.state_dict().keys()
    assert all(tensor.equal(plain.state_dict()[name]) for name, tensor in ready.state_dict().items())
    assert ready.restore()
    assert not ready.restore()
    assert ready.get_buffer(BITMASK).equal(plain.get_buffer(BITMASK))


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def through_torch(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@READY
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, through_pickle, through_torch])
def test_a_copy_computes_the_same_and_stands_alone(copied):
    layer = prepared()[1]
    x = torch.randn(3, 20, dtype=torch.bfloat16)
    other = copied(layer)
    wanted = layer(x)
    layer.get_buffer("prepared")[128:].fill_(7)
    assert other(x).equal(wanted)
    assert other.get_buffer("prepared") is not layer.get_buffer("prepared")


@READY
def test_a_state_can_be_loaded_into_a_prepared_layer():
    layer, other = prepared()[1], prepared()[1]
    state = {name: tensor * 2 if name == VALUES else tensor for name, tensor in layer.state_dict().items()}
    other.load_state_dict(state)
    x = torch.randn(3, 20, dtype=torch.bfloat16)
    assert other.weight.equal(layer.weight * 2)
    assert not other(x).equal(layer(x))


@READY
def test_another_dtype_leaves_the_prepared_weight_and_another_device_gets_what_was_stored():
    linear, packed = prepared()
    before = packed.get_buffer("prepared")
    packed.float()
    assert packed.get_buffer("prepared") is before
    x = torch.randn(3, 20)
    assert torch.allclose(packed(x), linear.float()(x), atol=1e-5)
    packed.to("meta")
    assert packed.get_buffer(VALUES).is_meta
    assert packed._buffers["prepared"] is None


@READY
def test_a_prepared_layer_under_autocast_has_its_dtype():
    linear, packed = pair()[0], prepared()[1].float()
    x = torch.randn(3, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
        assert torch.allclose(packed(x), linear(x), atol=2e-2)


@READY
@pytest.mark.parametrize("kind", ["same", "int8", "int4"])
def test_compiling_a_prepared_layer_breaks_no_graph(kind):
    model = nn.Sequential(prepared(kind=kind)[1], nn.ReLU()).requires_grad_(False)
    compiled, x = torch.compile(model, fullgraph=True, backend="eager"), torch.randn(4, 20, dtype=torch.bfloat16)
    assert compiled(x).equal(model(x))
    torch._dynamo.reset()


@READY
def test_the_operator_of_prepared_layers_says_what_it_gives_and_changes_nothing():
    packed = prepared(kind="int8")[1]
    arguments = (torch.randn(2, 3, 20), packed.get_buffer("prepared"), packed.bias, 24)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.ressa.prepared_linear.default, arguments, test_utils=checks)


def test_values_without_a_kernel_stay_as_they_are_stored():
    packed = pair()[1]
    assert not packed.prepare()
    assert packed.get_buffer(VALUES) is not None
