"""Integers whose rounding is made up for: against a plain reference, and what always holds."""

from __future__ import annotations

import pytest
import torch

from ressa.errors import RessaError
from ressa.exporting import rounding
from ressa.exporting.rounding import compensated
from ressa.packed.format import LARGEST, SCALES, nearest, runs, to_integers
from ressa.patterns import NofM, Unstructured
from ressa.statistics import Gram

SHAPES = [(1, 1), (5, 7), (3, 129), (16, 64), (64, 17)]
PATTERNS = {"dense": None, "2:4": NofM(2, 4), "50%": Unstructured(0.5, "matrix")}


def layer(shape, pattern="dense", seed=0):
    """(a weight, the Gram of inputs that depend on one another); with zeros the first row has nothing else."""
    generator = torch.Generator().manual_seed(seed)
    columns = shape[1]
    weight_OI = torch.randn(shape, generator=generator)
    chosen = PATTERNS[pattern]
    if chosen is not None and columns % chosen.columns == 0:
        weight_OI *= chosen.keep(weight_OI.abs())
        weight_OI[0] = 0
    inputs = Gram(columns)
    mixed_II = torch.randn(columns, columns, generator=generator)
    inputs.add(torch.randn(4 * columns + 8, columns, generator=generator) @ mixed_II)
    return weight_OI, inputs


def laid(weight_OI, kind, group):
    return runs((weight_OI != 0).sum(1), kind, group)


def spread(weight_OI, integers_N, scale_S, runs_S):
    """The weight that these integers stand for."""
    values_N = integers_N * scale_S.float().repeat_interleave(runs_S)
    return torch.zeros_like(weight_OI).masked_scatter_(weight_OI != 0, values_N)


def error_O(weight_OI, found_OI, inputs):
    off_OI = (found_OI - weight_OI).double()
    return ((off_OI @ inputs.gram_II.double()) * off_OI).sum(1)


def one_by_one(weight_OI, step_OI, hessian_II, kind, turns):
    """Row by row in float64: the optimal-brain update with the inverse of what is left; then the best integer each."""
    found_OI = torch.zeros_like(weight_OI)
    for row, step_I, found_I in zip(weight_OI.double(), step_OI.double(), found_OI, strict=True):
        moved_I = row.clone()
        for q in range(len(row)):
            inverse = torch.linalg.inv(hessian_II[q:, q:])
            found_I[q] = to_integers(moved_I[q], step_I[q], kind)
            moved_I[q:] -= (moved_I[q] - found_I[q] * step_I[q]) / inverse[0, 0] * inverse[0]
        for q in [*range(len(row))] * turns:
            off_I = found_I * step_I - row
            best = found_I[q] * step_I[q] - hessian_II[q] @ off_I / hessian_II[q, q]
            found_I[q] = to_integers(best, step_I[q], kind)
    return found_OI


def far_off(kept_N, runs_S, kind, scales):
    return torch.zeros_like(kept_N, dtype=torch.int8), torch.zeros(len(runs_S), dtype=SCALES[kind])


@pytest.mark.parametrize("turns", [0, 2])
@pytest.mark.parametrize("kind", LARGEST)
@pytest.mark.parametrize(("shape", "pattern"), [((4, 12), "dense"), ((5, 24), "2:4"), ((3, 70), "50%")])
def test_every_integer_is_that_of_the_update_written_out(shape, pattern, kind, turns, monkeypatch):
    monkeypatch.setattr(rounding, "TURNS", turns)
    monkeypatch.setattr(rounding, "SLAB", 16)
    monkeypatch.setattr(rounding, "nearest", far_off)  # no row is better rounded to nearest
    weight_OI, inputs = layer(shape, pattern)
    runs_S = laid(weight_OI, kind, 5)
    integers_N, scale_S = compensated(weight_OI, inputs, weight_OI != 0, runs_S, kind)
    step_OI = spread(weight_OI, torch.ones_like(integers_N), scale_S, runs_S)
    hessian_II = inputs.gram_II.double()
    hessian_II.diagonal().add_(0.01 * hessian_II.diagonal().mean())
    wanted_OI = one_by_one(weight_OI, step_OI, hessian_II, kind, turns)
    assert not wanted_OI[weight_OI == 0].any()
    assert integers_N.equal(wanted_OI[weight_OI != 0].to(torch.int8))
    assert not integers_N.equal(nearest(weight_OI[weight_OI != 0], runs_S, kind)[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("kind", "group"), [("int8", 64), ("int4", 1), ("int4", 3), ("int4", 64)])
def test_no_row_ends_worse_than_rounded_to_nearest(shape, pattern, kind, group):
    weight_OI, inputs = layer(shape, pattern)
    runs_S = laid(weight_OI, kind, group)
    integers_N, scale_S = compensated(weight_OI, inputs, weight_OI != 0, runs_S, kind)
    assert integers_N.dtype == torch.int8
    assert (integers_N.abs() <= LARGEST[kind]).all()
    assert scale_S.dtype == SCALES[kind]
    plain_OI = spread(weight_OI, *nearest(weight_OI[weight_OI != 0], runs_S, kind), runs_S)
    plain_O = error_O(weight_OI, plain_OI, inputs)
    found_O = error_O(weight_OI, spread(weight_OI, integers_N, scale_S, runs_S), inputs)
    assert (found_O <= plain_O * (1 + 1e-4) + 1e-9).all()


@pytest.mark.parametrize(("pattern", "share"), [("dense", 0.5), ("2:4", 0.75), ("50%", 0.75)])
def test_four_bits_lose_much_less_than_rounded_to_nearest(pattern, share):
    weight_OI, inputs = layer((64, 64), pattern)
    runs_S = laid(weight_OI, "int4", 16)
    found_OI = spread(weight_OI, *compensated(weight_OI, inputs, weight_OI != 0, runs_S, "int4"), runs_S)
    plain_OI = spread(weight_OI, *nearest(weight_OI[weight_OI != 0], runs_S, "int4"), runs_S)
    assert error_O(weight_OI, found_OI, inputs).sum() < share * error_O(weight_OI, plain_OI, inputs).sum()


def test_a_zero_that_is_kept_stays_a_zero_too():
    weight_OI, inputs = layer((16, 64), "50%")
    everything = torch.ones_like(weight_OI, dtype=torch.bool)
    integers_N, _ = compensated(weight_OI, inputs, everything, torch.full((64,), 16), "int4")
    assert not integers_N.view(16, 64)[weight_OI == 0].any()
    assert integers_N.any()


def test_the_same_integers_come_of_it_every_time():
    weight_OI, inputs = layer((33, 129), "50%")
    runs_S = laid(weight_OI, "int4", 5)
    first, again = (compensated(weight_OI, inputs, weight_OI != 0, runs_S, "int4") for _ in range(2))
    assert first[0].equal(again[0])
    assert first[1].equal(again[1])


def test_inputs_that_are_always_zero_leave_weights_at_the_nearest():
    weight_OI, inputs = torch.randn(4, 8), Gram(8)
    inputs.add(torch.zeros(3, 8))
    runs_S = laid(weight_OI, "int8", 64)
    integers_N, _ = compensated(weight_OI, inputs, weight_OI != 0, runs_S, "int8")
    assert integers_N.equal(nearest(weight_OI.flatten(), runs_S, "int8")[0])


def test_a_weight_of_no_numbers_is_refused():
    _, inputs = layer((2, 4))
    weight_OI = torch.tensor([[1.0, float("nan"), 2, 3]])
    with pytest.raises(RessaError, match="NaN or infinity"):
        compensated(weight_OI, inputs, weight_OI != 0, torch.tensor([4]), "int8")
