"""Input statistics: plain formulas, weights, any rank, any cut into batches."""

from __future__ import annotations

import pytest
import torch

from ressa.errors import RessaError
from ressa.statistics import Gram, GramAndMoments, InputNorm, Moments

ALL = pytest.mark.parametrize("statistic", [InputNorm, Moments, Gram])


def read(inputs: InputNorm | Moments | Gram) -> dict[str, torch.Tensor]:
    names = [name for name in ("norm_I", "mean_I", "variance_I", "gram_II") if hasattr(inputs, name)]
    return {name: getattr(inputs, name) for name in names}


def gathered(statistic, *batches):
    inputs = statistic(batches[0][0].shape[-1])
    for x, weight in batches:
        inputs.add(x, weight)
    return inputs


def plainly(x_TI: torch.Tensor, weight_T: torch.Tensor) -> dict[str, torch.Tensor]:
    """The formulas as written in a book, in float64."""
    x_TI, share_T1 = x_TI.double(), (weight_T.double() / weight_T.double().sum())[:, None]
    mean_I = (share_T1 * x_TI).sum(0)
    return {
        "norm_I": (share_T1 * x_TI**2).sum(0).sqrt(),
        "mean_I": mean_I,
        "variance_I": (share_T1 * (x_TI - mean_I) ** 2).sum(0),
        "gram_II": x_TI.T @ (share_T1 * x_TI),
    }


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """60 tokens of 10 inputs, and unlike weights, some zero."""
    random = torch.Generator().manual_seed(0)
    x_TI = torch.randn(60, 10, generator=random) @ torch.randn(10, 10, generator=random) + 3
    return x_TI, torch.randint(0, 4, (60,), generator=random) / 2


@ALL
def test_statistics_are_the_plain_weighted_formulas(statistic, tokens):
    inputs = gathered(statistic, tokens)
    assert inputs.tokens == tokens[1].sum().item()
    for name, value in read(inputs).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), plainly(*tokens)[name], rtol=1e-5, atol=1e-5)


@ALL
def test_no_weights_are_weights_of_one(statistic, tokens):
    inputs = gathered(statistic, (tokens[0], None))
    assert inputs.tokens == 60
    for name, value in read(inputs).items():
        torch.testing.assert_close(value.double(), plainly(tokens[0], torch.ones(60))[name], rtol=1e-5, atol=1e-5)


@ALL
@pytest.mark.parametrize("cuts", [(30,), (1, 2, 59), (7, 20, 41)])
def test_how_tokens_are_cut_into_batches_changes_only_rounding(statistic, tokens, cuts):
    parts = zip(*(part.tensor_split(cuts) for part in tokens), strict=True)
    for name, value in read(gathered(statistic, *parts)).items():
        torch.testing.assert_close(value, read(gathered(statistic, tokens))[name], rtol=1e-5, atol=1e-5)


@ALL
@pytest.mark.parametrize("shape", [(60,), (3, 20), (2, 5, 6), (1, 60)])
def test_inputs_of_any_rank_are_the_same_tokens(statistic, tokens, shape):
    x, weight = tokens
    for name, value in read(gathered(statistic, (x.view(*shape, 10), weight.view(shape)))).items():
        torch.testing.assert_close(value, read(gathered(statistic, tokens))[name])


@ALL
def test_one_token_without_any_other_dimension_can_be_added(statistic):
    assert gathered(statistic, (torch.ones(10), None)).tokens == 1


@ALL
def test_weights_broadcast_over_a_batch(statistic, tokens):
    x, weight_T = tokens[0].view(3, 20, 10), tokens[1][:20]
    spelled = gathered(statistic, (x, weight_T.repeat(3, 1)))
    for name, value in read(gathered(statistic, (x, weight_T))).items():
        torch.testing.assert_close(value, read(spelled)[name])


@ALL
def test_padding_changes_no_bit_even_where_it_is_not_a_number(statistic, tokens):
    x, _ = tokens
    padded = torch.cat([x, torch.full((9, 10), torch.nan)])
    mask = torch.arange(69) < 60
    for name, value in read(gathered(statistic, (padded, mask))).items():
        assert torch.equal(value, read(gathered(statistic, (x, torch.ones(60))))[name])


@ALL
def test_low_precision_inputs_are_summed_in_float32(statistic):
    x_TI = torch.full((5000, 2), 1.0, dtype=torch.bfloat16)  # a bfloat16 sum of ones stops at 256, a float16 at 2048
    inputs = gathered(statistic, *((part, None) for part in x_TI.split(50)))
    torch.testing.assert_close(inputs.norm_I, torch.ones(2))
    half = gathered(statistic, (torch.full((4, 2), 300.0, dtype=torch.float16), None))  # 300^2 overflows float16
    torch.testing.assert_close(half.norm_I, torch.full((2,), 300.0))


def test_autocast_does_not_lower_the_precision_of_a_gram(tokens):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gathered(Gram, tokens)
    assert torch.equal(inside.gram_II, gathered(Gram, tokens).gram_II)


def test_variance_survives_a_large_mean(tokens):
    x_TI = tokens[0] + 3000
    expected = plainly(x_TI, torch.ones(60))["variance_I"].float()
    halves = [(part, None) for part in x_TI.split(30)]
    torch.testing.assert_close(gathered(Moments, *halves).variance_I, expected, rtol=1e-3, atol=0)


@ALL
def test_a_layer_that_no_token_reached_is_refused(statistic):
    inputs = gathered(statistic, (torch.ones(3, 4), torch.zeros(3)))
    assert inputs.tokens == 0
    with pytest.raises(RessaError, match="no calibration token"):
        _ = inputs.norm_I


@ALL
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_inputs_that_are_not_numbers_are_refused(statistic, bad):
    with pytest.raises(RessaError, match="NaN or infinity"):
        _ = gathered(statistic, (torch.tensor([[1.0, bad]]), None)).norm_I


@pytest.mark.parametrize("damp", [0.01, 0.1])
def test_the_inverse_factor_is_the_upper_cholesky_of_the_damped_inverse(tokens, damp):
    gram = gathered(Gram, tokens)
    factor_II, H = gram.inverse_factor(damp), gram.gram_II.double()
    inverse = torch.linalg.inv(H + damp * H.diagonal().mean() * torch.eye(10))
    expected = torch.linalg.cholesky(inverse, upper=True)
    torch.testing.assert_close(factor_II.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_gram_is_factored_once_until_more_inputs_come(tokens):
    gram = gathered(Gram, tokens)
    first = gram.inverse_factor(0.01)
    assert gram.inverse_factor(0.01) is first
    assert gram.inverse_factor(0.1) is not first
    gram.add(*tokens)
    assert gram.inverse_factor(0.01) is not first
    torch.testing.assert_close(gram.inverse_factor(0.01), first)  # a mean: the same inputs twice change nothing


def test_a_gram_that_cannot_be_factored_is_damped_more_with_a_warning_and_stays_what_it_was(tokens):
    gram = gathered(Gram, (tokens[0] * (torch.arange(10) != 4), None))  # without damping, a dead input has no inverse
    before = gram.gram_II.clone()
    with pytest.warns(UserWarning, match=r"needed damping 0\.01, not 0"):
        factor_II = gram.inverse_factor(0.0)
    assert torch.equal(gram.gram_II, before)
    assert torch.equal(factor_II, gram.inverse_factor(0.01))


def test_inputs_that_are_all_zero_have_no_inverse():
    with pytest.raises(RessaError, match="all inputs zero"):
        gathered(Gram, (torch.zeros(5, 4), None)).inverse_factor()


@pytest.mark.parametrize("kind", [Gram, GramAndMoments])
def test_shrinkage_adds_inputs_over_tokens_to_the_diagonal_and_nothing_else(kind, tokens):
    plain, shrunk = gathered(kind, tokens), gathered(kind, tokens)
    shrunk.shrink(0.5)
    share = 0.5 * 10 / plain.tokens
    torch.testing.assert_close(shrunk.gram_II, plain.gram_II + torch.diag(share * plain.gram_II.diagonal()))
    assert torch.equal(shrunk.norm_I, plain.norm_I)
    torch.testing.assert_close(shrunk.unit_gram_II.diagonal(), torch.full((10,), 1 + share))
