"""The arithmetic of SparseLoRA: a low-rank update of the kept weights, with exact gradients and next to no memory.

    W_eff = W + s * (B @ A) * [W != 0]          dB = s * (G * [W != 0]) @ A.T
    G     = dY.T @ X                            dA = s * B.T @ (G * [W != 0])

``W_eff`` is computed again in the backward, and both passes go through the weight in chunks of rows, so autograd keeps
nothing but the input and parameters, and no (out x in) tensor exists at any time. Idea of the masked product: RESSA
(arXiv 2404.02424), SQFT; of the recomputation, and of the straight-through gradients: LoRS.

Shapes: O out, I in, R rank, T tokens (every dimension before the last), C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ressa.model.precision import wide

CHUNK = 1 << 23  # weights in a chunk (32 MB in float32); the workspace is two such chunks, three where dtypes differ


def row_chunks(weight_OI: Tensor) -> Iterator[slice]:
    """Slices of rows of at most CHUNK weights each (at least one row)."""
    rows = max(1, CHUNK // max(1, weight_OI.shape[1]))
    return (slice(start, start + rows) for start in range(0, weight_OI.shape[0], rows))


def where_kept(x_CI: Tensor, weight_CI: Tensor) -> Tensor:
    """`x_CI` in place: as it is where the weight is not zero, else exactly 0 (also where it is infinite).

    The gradient of hardshrink is this selection in one pass; `masked_fill_` takes ten times as long on a CPU.
    """
    return torch.ops.aten.hardshrink_backward.grad_input(x_CI, weight_CI, 0.0, grad_input=x_CI)


def effective_chunks(
    weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, W_eff of those rows, W of those rows), chunk by chunk; W_eff is good until the next.

    ``W + scale * (B @ A) * [W != 0]`` is added in the widest dtype of the three, at least float32. Zeros of the weight
    stay exactly zero, whatever A and B hold. One workspace serves all chunks: fresh memory costs more than the sums.
    """
    dtype = wide(weight_OI, a_RI)
    a_RI = a_RI.to(dtype)
    sum_CI = weight_OI.new_empty(0)
    for rows in row_chunks(weight_OI):
        part_CI = weight_OI[rows].to(dtype)
        if sum_CI.shape != part_CI.shape:
            sum_CI = torch.empty(part_CI.shape, dtype=dtype, device=weight_OI.device)
        torch.addmm(part_CI, b_OR[rows].to(dtype), a_RI, alpha=scale, out=sum_CI)
        yield rows, where_kept(sum_CI, part_CI), part_CI


def effective_weight(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """W_eff as a whole, added in float32 (or wider) and cast once."""
    effective_OI = torch.empty_like(weight_OI, dtype=dtype)
    for rows, part_CI, _ in effective_chunks(weight_OI, a_RI, b_OR, scale):
        effective_OI[rows] = part_CI
    return effective_OI


class MaskedLinear(torch.autograd.Function):
    """``x @ W_eff.T + bias`` with exact gradients for x, weight, bias, A and B; keeps x and parameters, not W_eff."""

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale: float, dtype: torch.dtype) -> Tensor:
        """x (..., I) -> (..., O) in `dtype`, the dtype of the products (the autocast dtype under autocast)."""
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR)
        ctx.scale, ctx.dtype, ctx.bias_dtype = scale, dtype, None if bias_O is None else bias_O.dtype
        with torch.autocast(x.device.type, enabled=False):  # A @ B in float32 even where the caller asks for bfloat16
            x_TI = x.reshape(-1, x.shape[-1]).to(dtype)
            y = torch.empty(*x.shape[:-1], len(weight_OI), dtype=dtype, device=x.device)
            y_TO = y.view(-1, len(weight_OI))  # it is the whole that is returned: a view could not be changed in place
            for rows, effective_CI, _ in effective_chunks(weight_OI, a_RI, b_OR, scale):
                if bias_O is None:
                    torch.mm(x_TI, effective_CI.to(dtype).mT, out=y_TO[:, rows])
                else:  # as linear does it: rounded once, with the bias in it
                    torch.addmm(bias_O[rows].to(dtype), x_TI, effective_CI.to(dtype).mT, out=y_TO[:, rows])
            return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        need_a, need_b = ctx.needs_input_grad[3:5]
        dx, dweight, dbias, da, db = _gradients(ctx, ctx.saved_tensors, dy, need_a or need_b)
        return dx, dweight, dbias, da, db, None, None


class StraightThrough(torch.autograd.Function):
    """As `MaskedLinear`, but A and B get the gradients of an update without a mask: as cheap as LoRA, and biased.

    For a random mask, their direction and the exact one have the square root of the density as cosine (0.71 at 2:4).
    """

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale: float, dtype: torch.dtype) -> Tensor:
        return MaskedLinear.forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        saved = ctx.saved_tensors  # once: what is computed again may be unpacked no second time
        dx, dweight, dbias, _, _ = _gradients(ctx, saved, dy, low_rank=False)
        x, _, a_RI, b_OR = saved
        with torch.autocast(x.device.type, enabled=False):
            dy_TO, x_TI = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]).to(ctx.dtype)
            a, b = a_RI.to(ctx.dtype), b_OR.to(ctx.dtype)
            da = ((dy_TO @ b).mT @ x_TI).mul_(ctx.scale).to(a_RI.dtype)
            db = (dy_TO.mT @ (x_TI @ a.mT)).mul_(ctx.scale).to(b_OR.dtype)
        return dx, dweight, dbias, da, db, None, None


def _gradients(ctx, saved: tuple[Tensor, ...], dy, low_rank: bool) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, A and B; None for those not needed, and for A and B unless `low_rank`."""
    x, weight_OI, a_RI, b_OR = saved
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    with torch.autocast(x.device.type, enabled=False):
        dy_TO, x_TI = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]).to(ctx.dtype)
        dbias = dy_TO.sum(0, dtype=ctx.bias_dtype) if need_bias else None
        # a sum over chunks in bfloat16 would be rounded once per chunk
        dx_TI = torch.zeros(x_TI.shape, dtype=wide(x_TI), device=x.device) if need_x else None
        dweight_OI = torch.empty_like(weight_OI) if need_weight else None
        da_RI, db_OR = (torch.zeros_like(a_RI), torch.empty_like(b_OR)) if low_rank else (None, None)
        gradient_CI = x_TI.new_empty(0)
        for rows, effective_CI, part_CI in effective_chunks(weight_OI, a_RI, b_OR, ctx.scale):
            dy_TC = dy_TO[:, rows]
            if dx_TI is not None:
                _add_product(dx_TI, dy_TC, effective_CI.to(dy_TC.dtype))
            if dweight_OI is not None or low_rank:
                if gradient_CI.shape != effective_CI.shape:
                    gradient_CI = torch.empty(effective_CI.shape, dtype=x_TI.dtype, device=x.device)
                torch.mm(dy_TC.mT, x_TI, out=gradient_CI)
            if dweight_OI is not None:
                dweight_OI[rows] = gradient_CI
            if da_RI is not None and db_OR is not None:
                masked_CI = where_kept(gradient_CI.to(part_CI.dtype), part_CI).to(a_RI.dtype)
                torch.mm(masked_CI, a_RI.mT, out=db_OR[rows])
                da_RI.addmm_(b_OR[rows].to(a_RI.dtype).mT, masked_CI, alpha=ctx.scale)
        dx = None if dx_TI is None else dx_TI.view(x.shape).to(x.dtype)
    return dx, dweight_OI, dbias, da_RI, None if db_OR is None else db_OR.mul_(ctx.scale)


def _add_product(sum_TI: Tensor, dy_TC: Tensor, weight_CI: Tensor) -> None:
    if dy_TC.dtype == sum_TI.dtype:
        sum_TI.addmm_(dy_TC, weight_CI)
    else:
        sum_TI += dy_TC @ weight_CI
