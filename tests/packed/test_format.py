"""The packed format of one linear: exact round trips, values in 8 and 4 bits, and files that lie."""

from __future__ import annotations

import random

import pytest
import torch

from ressa.errors import RessaError
from ressa.packed.format import BITMASK, LARGEST, SCALE, SHAPE, VALUES, check, check_config, pack, stored_as, unpack

SHAPES = [(1, 1), (5, 7), (3, 129), (16, 64), (64, 17)]
FLOATS = [torch.bfloat16, torch.float16, torch.float32]


def sparse(shape, dtype=torch.float32, seed=0):
    """Half zeros; with more than two rows the first is all zeros and the last is dense."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(shape, generator=generator)
    if shape[0] > 2:
        weight_OI[1:-1] *= torch.rand(shape[0] - 2, shape[1], generator=generator) < 0.5
        weight_OI[0] = 0
    return weight_OI.to(dtype)


def dense(packed, dtype=torch.float32):
    return unpack(packed, torch.full(packed.shape, float("nan"), dtype=dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_round_trip_gives_the_same_bits(shape, dtype):
    weight_OI = sparse(shape, dtype)
    packed = pack(weight_OI)
    check(packed, "it")
    assert len(packed.values) == int((weight_OI != 0).sum())
    assert dense(packed, dtype).equal(weight_OI)


def test_the_bits_stand_where_the_specification_says():
    packed = pack(torch.tensor([[0.0, 5, 0, 0, 0, 0, 0, 0, 6], [7, 0, 0, 0, 0, 0, 0, 8, 0]]))
    assert packed.bitmask.tolist() == [[0b10, 0b1], [0b10000001, 0]]
    assert packed.values.tolist() == [5, 6, 7, 8]


def test_the_integers_stand_where_the_specification_says():
    packed = pack(torch.tensor([[7.0, 0, -1, 3.5], [0, -14, 0, 0]]), "int4", group=2)
    assert packed.scale.tolist() == [1, 0.5, 2]  # two kept weights, the one that is left of the row, the next row
    assert packed.values.tolist() == [(-1 & 15) << 4 | 7, (-7 & 15) << 4 | 7]
    assert pack(torch.tensor([[127.0, 0, -3], [0, 0, 0]]), "int8").scale.tolist() == [1, 0]


def test_a_weight_without_zeros_has_no_bitmask():
    weight_OI = sparse((2, 9)) + 10
    assert pack(weight_OI).bitmask is None
    assert dense(pack(weight_OI)).equal(weight_OI)
    assert (dense(pack(weight_OI, "int4")) - weight_OI).abs().max() < 1


@pytest.mark.parametrize(("kind", "zeros"), [("int8", 2), ("int4", 4)])
def test_a_few_zeros_are_stored_as_integers_where_their_bits_would_cost_more(kind, zeros):
    weight_OI = sparse((2, 8)) + 10
    weight_OI[0, :zeros] = 0  # of 16: as many bits as a bitmask
    packed = pack(weight_OI, kind)
    check(packed, "it")
    assert packed.bitmask is None
    assert dense(packed).eq(0).equal(weight_OI == 0)
    weight_OI[1, 0] = 0
    assert pack(weight_OI, kind).bitmask is not None
    assert pack(weight_OI).bitmask is not None, "of floats a bitmask says what is pruned"


def test_a_negative_zero_is_a_zero():
    assert pack(torch.tensor([[-0.0, 1.0]])).values.tolist() == [1.0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", LARGEST)
@pytest.mark.parametrize("group", [1, 3, 64])
def test_integers_are_the_nearest_and_never_make_a_zero_anything_else(shape, kind, group):
    weight_OI = sparse(shape)
    packed = pack(weight_OI, kind, group)
    check(packed, "it")
    found_OI = dense(packed)
    assert not found_OI[weight_OI == 0].any()
    assert packed.bitmask is None or dense(pack(weight_OI)).ne(0).equal(weight_OI != 0)
    step_O1 = weight_OI.abs().amax(1, keepdim=True) / LARGEST[kind]  # of a group at most that of its row
    assert ((found_OI - weight_OI).abs() <= step_O1 * (0.5 + LARGEST[kind] * 2**-8) + 1e-7).all()


def test_a_kept_weight_may_round_to_zero_and_stays_kept():
    packed = pack(torch.tensor([[100.0, 0.01, 0]]), "int8")
    assert packed.values.tolist() == [100 * 127 // 100, 0]
    assert packed.bitmask.tolist() == [[0b11]]


def test_values_that_are_too_small_for_a_scale_are_zeros_and_no_nan():
    assert dense(pack(torch.tensor([[1e-45, 0.0]]), "int8")).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("weight", "kind", "words"),
    [
        (torch.tensor([[1e6, 0]]), "fp16", "too large for fp16"),
        (torch.tensor([[float("nan"), 0]]), "int8", "NaN or infinity"),
        (torch.zeros(2, 2, dtype=torch.float64), "same", "torch.float64 cannot be packed"),
    ],
)
def test_what_values_cannot_hold_is_refused(weight, kind, words):
    with pytest.raises(RessaError, match=words):
        pack(weight, kind)


# ---- files that lie --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told", [{}, {"version": "1"}, {"version": 0}, {"version": 1, "group_size": 0}, {"version": True}]
)
def test_a_config_that_makes_no_sense_is_refused(told):
    with pytest.raises(RessaError, match=r"config\.json"):
        check_config(told)


def test_a_newer_version_is_refused():
    with pytest.raises(RessaError, match="version 2 of the packed format, ressa knows 1: update ressa"):
        check_config({"version": 2})


def lies(tensors, draw):
    """The tensors with one to three things changed at random."""
    tensors = dict(tensors)
    for _ in range(draw.randint(1, 3)):
        name = draw.choice(list(tensors) or [SHAPE])
        tensor = tensors.get(name, torch.zeros(0))
        tensors[name] = draw.choice(
            [
                lambda t: t[: draw.randint(0, len(t))],
                lambda t: torch.cat([t, t[:1]]),
                lambda t: t.flatten(),
                lambda t: t.to(draw.choice([torch.int64, torch.uint8, torch.int8, torch.float32, torch.bool])),
                lambda t: torch.randint(-(2**40), 2**40, t.shape).to(t.dtype),
                lambda t: t.unsqueeze(0),
                lambda t: t.new_zeros(()),
            ]
        )(tensor if tensor.ndim else tensor.reshape(1))
        if draw.random() < 0.2:
            tensors.pop(draw.choice([SHAPE, VALUES, BITMASK, SCALE]), None)
    return tensors


@pytest.mark.parametrize("kind", ["same", "int8", "int4"])
def test_tensors_that_contradict_one_another_are_refused_and_others_can_be_unpacked(kind):
    draw, refused = random.Random(0), 0
    torch.manual_seed(0)
    for number in range(1500):
        weight_OI = sparse((draw.randint(1, 6), draw.randint(1, 20)), seed=number)
        try:
            packed = stored_as(lies(pack(weight_OI, kind, 3).tensors(), draw), 3, "it")
        except RessaError:
            refused += 1
            continue
        assert dense(packed).shape == packed.shape
    assert 1000 < refused < 1500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({SHAPE: torch.tensor([2**20, 2**40])}, "cannot be"),
        ({SHAPE: torch.tensor([-1, 9])}, "cannot be"),
        ({SHAPE: torch.tensor([2**40, 1]), BITMASK: None}, "not as many as its weights"),
        ({SHAPE: torch.tensor([5, 9])}, "bitmask is"),
        ({VALUES: torch.zeros(3)}, "3 values are stored and its bits ask for"),
        ({VALUES: torch.zeros(3, dtype=torch.int8)}, "values are stored"),
        ({VALUES: torch.full((15,), torch.nan)}, "NaN"),
        ({SCALE: torch.zeros(5)}, "a scale beside values of fp32"),
        ({BITMASK: torch.full((5, 1), 255, dtype=torch.uint8)}, "behind the last column"),
    ],
)
def test_every_contradiction_is_named(change, words):
    tensors = pack(sparse((5, 7))).tensors() | change
    with pytest.raises(RessaError, match=f"^it: .*{words}"):
        stored_as({name: tensor for name, tensor in tensors.items() if tensor is not None}, 64, "it")
