"""Kept weights in 8 or 4 bits; what each loses in rounding, those that come after it make up for. Zeros stay zeros.

Shapes: O outputs, I inputs, N kept weights in row-major order, S scales, each for a run of kept weights of one row; S
also inputs of one slab. Papers: GPTQ (Frantar et al. 2022, arXiv 2210.17323) for dense weights; with zeros SparseGPT
(Frantar & Alistarh 2023, arXiv 2301.00774, section 3.5); then QuantEase (Behdin et al. 2023, arXiv 2309.01885).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ressa.packed.format import LARGEST, nearest, to_integers
from ressa.statistics import Gram

SLAB = 64  # inputs rounded before the rest of the matrix is updated, in one product
TURNS = 4  # of coordinate descent; with zeros they halve the error of int4, and later ones take off little
SHRINKS = [1 - step / 40 for step in range(20)]  # of the scale that reaches a run's largest: some of these are clipped


@torch.no_grad()
def compensated(
    weight_OI: Tensor,
    inputs: Gram,
    keep_OI: Tensor,
    runs_S: Tensor,
    kind: str,
    scales: torch.dtype | None = None,
    *,
    damp: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """(int8 integers (N,), scales (S,)) of `kind` for the kept weights, as `packed.format.nearest` gives them.

    Inputs are rounded from left to right. What rounding input q changes, weights further right take over by the
    optimal-brain update, -(w_q - round(w_q)) / [H^-1]_qq * [H^-1]_q: (GPTQ, equation 2), by the Cholesky factor of H^-1
    (step 3). Where the weight is zero, kept or not, its integer is 0, and what it was to take over is handed on
    (SparseGPT, section 3.5). For that, `TURNS` of coordinate descent then set each integer to the best one beside the
    others (QuantEase). Scales are chosen before (`_scales`). A row that ends with a larger error (w - w') H (w - w')T
    than rounding to nearest has is rounded to nearest: no row ends worse.

    Args:
        keep_OI: which weights are kept: all that are not zero, and zeros or not.
        runs_S: how many kept weights each scale is for, row by row.
        scales: the dtype of scales. [as the packed format has it]
        damp: added to the Gram's diagonal, as a share of its mean.

    Raises:
        RessaError: NaN or infinity in the weight or in the inputs.
    """
    kept_N, gram_II = weight_OI[keep_OI], inputs.gram_II
    plain_N, plain_S = nearest(kept_N, runs_S, kind, scales)
    if not gram_II.any():
        return plain_N, plain_S  # whatever the weights are, nothing comes of them
    factor_II = inputs.inverse_factor(damp)
    columns_N = keep_OI.nonzero()[:, 1]
    scale_S = _scales(kept_N.float(), factor_II.diagonal()[columns_N], runs_S, kind, plain_S.dtype)
    step_OI = torch.zeros_like(weight_OI, dtype=torch.float32)
    step_OI.masked_scatter_(keep_OI, scale_S.float().repeat_interleave(runs_S)).masked_fill_(weight_OI == 0, 0)
    hessian_II = gram_II + damp * gram_II.diagonal().mean() * torch.eye(len(gram_II), device=gram_II.device)
    integers_OI = _settled(_passed_on(weight_OI, step_OI, factor_II, kind), weight_OI, step_OI, hessian_II, kind)
    integers_N = integers_OI[keep_OI]

    def error_N(integers_N: Tensor, scale_S: Tensor) -> Tensor:
        """Of each kept weight's row."""
        off_N = integers_N * scale_S.float().repeat_interleave(runs_S) - kept_N
        off_OI = torch.zeros_like(step_OI).masked_scatter_(keep_OI, off_N)
        return ((off_OI @ gram_II) * off_OI).sum(1)[:, None].expand_as(keep_OI)[keep_OI]

    worse_N = error_N(integers_N, scale_S) > error_N(plain_N, plain_S)
    worse_S = torch.zeros_like(runs_S, dtype=torch.bool)
    worse_S[torch.arange(len(runs_S), device=runs_S.device).repeat_interleave(runs_S)[worse_N]] = True
    return plain_N.where(worse_N, integers_N), plain_S.where(worse_S, scale_S)


def _passed_on(weight_OI: Tensor, step_OI: Tensor, factor_II: Tensor, kind: str) -> Tensor:
    """The integers (O, I) of steps `step_OI`, rounded input by input; those without a step are 0."""
    weight_IO = weight_OI.T.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    step_IO = step_OI.T.contiguous()
    integers_IO = torch.empty_like(weight_IO, dtype=torch.int8)
    for a in range(0, len(weight_IO), SLAB):
        b = min(a + SLAB, len(weight_IO))
        error_SO = weight_IO[a:b]  # in place: once rounded, a weight is not looked at again
        for j in range(a, b):
            integers_IO[j] = to_integers(weight_IO[j], step_IO[j], kind)
            weight_IO[j].addcmul_(integers_IO[j], step_IO[j], value=-1).div_(factor_II[j, j])
            weight_IO[j + 1 : b].addr_(factor_II[j, j + 1 : b], weight_IO[j], alpha=-1)
        weight_IO[b:].addmm_(factor_II[a:b, b:].T, error_SO, alpha=-1)
    return integers_IO.T


def _settled(integers_OI: Tensor, weight_OI: Tensor, step_OI: Tensor, hessian_II: Tensor, kind: str) -> Tensor:
    """The integers (O, I) after coordinate descent: each in turn is the best one, the others being as they then are."""
    integers_IO, step_IO = integers_OI.T.contiguous(), step_OI.T.contiguous()
    off_IO = integers_IO * step_IO - weight_OI.T
    for a in [*range(0, len(off_IO), SLAB)] * TURNS:
        b = min(a + SLAB, len(off_IO))
        slope_SO = hessian_II[a:b] @ off_IO
        for j in range(a, b):
            best_O = integers_IO[j] * step_IO[j] - slope_SO[j - a] / hessian_II[j, j]
            before_O, integers_IO[j] = integers_IO[j].clone(), to_integers(best_O, step_IO[j], kind)
            change_O = (integers_IO[j] - before_O) * step_IO[j]
            off_IO[j] += change_O
            slope_SO[j - a + 1 :].addr_(hessian_II[j, j + 1 : b], change_O)
    return integers_IO.T


def _scales(kept_N: Tensor, pivot_N: Tensor, runs_S: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """For each run the scale (S,), among `SHRINKS` of the one that clips nothing, with the least squared error.

    An error counts as much as it will cost once those after it have made up for it: divided by the square of the
    factor's `pivot` (GPTQ, equation 2).
    """
    run_N = torch.arange(len(runs_S), device=kept_N.device).repeat_interleave(runs_S)
    amax_S = kept_N.new_zeros(len(runs_S)).scatter_reduce_(0, run_N, kept_N.abs(), "amax")
    best_S, least_S = amax_S.to(dtype), torch.full_like(amax_S, torch.inf)
    for shrink in SHRINKS:
        scale_S = (amax_S * (shrink / LARGEST[kind])).to(dtype)
        scale_N = scale_S.float()[run_N]
        off_N = to_integers(kept_N, scale_N, kind).float().mul_(scale_N).sub_(kept_N).div_(pivot_N).square_()
        error_S = torch.zeros_like(amax_S).scatter_add_(0, run_N, off_N)
        better_S = error_S < least_S
        best_S, least_S = scale_S.where(better_S, best_S), error_S.where(better_S, least_S)
    return best_S
