"""Who owns which linears, and that a statistic is the same whoever made what its batches add."""

from __future__ import annotations

import pytest
import torch

from ressa import parallel
from ressa.calibration.asymmetric import Crossed
from ressa.calibration.sums import Owners, Sums, shapes
from ressa.errors import RessaError
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.parallel import Team
from ressa.statistics import Gram, GramAndMoments, InputNorm, Moments


@pytest.fixture
def block(llava_folder):
    return structure(load(llava_folder)[0]).blocks(("language",))[0]


def groups(block):
    """As the block reads: query, key and value; the attention's output; gate and up; down."""
    ends = ("q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj")
    return [tuple(name for name in block.linears if name.endswith(tuple(end.split()))) for end in ends]


def test_the_largest_gram_is_given_out_first_and_the_rest_to_whom_has_the_least_to_do(block, monkeypatch):
    monkeypatch.setattr(parallel, "_team", Team(0, 2))
    owners = Owners(block, Gram)
    attention, output, gates, down = groups(block)
    owners.deal([attention, output, gates, down])
    assert owners[down[0]] == 0  # 64 inputs, the others 32
    assert {owners[name] for names in (gates, attention, output) for name in names} == {1}
    assert owners.mine(block.linears) == list(down)
    whole = Owners(block, Gram, whole=True)
    assert whole.mine(block.linears) == list(block.linears)


def test_alone_a_process_owns_everything(block):
    owners = Owners(block, InputNorm)
    owners.deal(groups(block))
    assert owners.mine(block.linears) == list(block.linears)
    owners.share()


def test_linears_that_share_an_input_in_one_batch_only_are_refused(block):
    query, key, value = groups(block)[0]
    sums, x = Sums(InputNorm, Owners(block, InputNorm)), torch.ones(2, 32)
    sums.add([((query, key, value), [(x, None)])])
    with pytest.raises(RessaError, match="read the same input in one batch only"):
        sums.add([((query, key), [(x, None)]), ((value,), [(x, None)])])


@pytest.mark.parametrize("needs", [InputNorm, Moments, Gram, GramAndMoments])
@pytest.mark.parametrize("width", [3, 8, 30])
def test_what_is_taken_piece_by_piece_is_what_was_added(needs, width):
    rng = torch.Generator().manual_seed(0)
    added, taken = needs(width), needs(width)
    for tokens in (5, 1, 7):
        x = torch.randn(2, tokens, width, generator=rng)
        weight = torch.randint(3, (2, tokens), generator=rng).float()
        added.add(x, weight)
        told, parts = needs.parts(x, weight)
        pieces = [make() for make in parts]  # elsewhere
        assert [piece.shape for piece in pieces] == shapes(needs, width)
        for number, piece in enumerate(pieces):
            taken.take(number, piece, told)
    assert taken.tokens == added.tokens
    for name in ("norm_I", "variance_I", "gram_II"):
        if hasattr(needs, name):
            assert torch.equal(getattr(taken, name), getattr(added, name))


def test_the_difference_to_the_dense_model_is_taken_as_it_is_added():
    x, d = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    added, taken = Crossed(6), Crossed(6)
    added.add(x, d, None)
    told, (make,) = Crossed.parts(x, d, None)
    taken.take(0, make(), told)
    assert torch.equal(added.products_II, taken.products_II)
    torch.testing.assert_close(added.products_II, (d - x).reshape(-1, 6).T @ x.reshape(-1, 6))
    assert shapes(Crossed, 6) == [(6, 6)]
