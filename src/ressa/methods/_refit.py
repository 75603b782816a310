"""The least-squares answer for weights whose zeros are chosen already; ALPS ends with it (Meng et al. 2024).

Shapes: O outputs, I inputs. Paper: arXiv 2406.07831, algorithm 2: conjugate gradients, each row its own system.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ressa.statistics import Gram

SMALL = 1e-6  # share of the gradient at weights of zero that passes for none
ROUNDS = 3  # each begins with the true gradient: the one that conjugate gradients carry along drifts in float32


@torch.no_grad()
def refit(weight_OI: Tensor, pruned_OI: Tensor, inputs: Gram, *, damp: float = 0.01, iterations: int = 300) -> Tensor:
    """`pruned_OI` with the weights that are not zero set so that the outputs come closest to those of `weight_OI`.

    It minimises (P - W) H (P - W)T row by row over all P with the zeros of `pruned_OI`, where H is the Gram with `damp`
    added to its diagonal, as a share of each input's mean square. No zero changes and no row ends worse than it began.
    A round takes at most so many `iterations`, and ends once every row's gradient is `SMALL`; mostly a few dozen do.
    """
    start_OI = pruned_OI.float()
    off_OI = weight_OI.float() - start_OI
    hessian_II = inputs.gram_II  # computed for us: ours to change
    hessian_II.diagonal().mul_(1 + damp)
    inverse_I = hessian_II.diagonal().reciprocal().nan_to_num_(posinf=0)  # an input that is always zero stays as it is
    enough_O1 = SMALL**2 * _size(weight_OI.float() @ hessian_II, inverse_I)
    free_OI, change_OI = start_OI != 0, torch.zeros_like(start_OI)
    for _ in range(ROUNDS):
        down_OI = ((off_OI - change_OI) @ hessian_II).where(free_OI, 0)
        change_OI += _conjugate(down_OI, free_OI, hessian_II, inverse_I, enough_O1, iterations)
    gain_O1 = (change_OI * ((2 * off_OI - change_OI) @ hessian_II)).sum(dim=1, keepdim=True)
    return (start_OI + change_OI).where(gain_O1 > 0, start_OI).to(weight_OI.dtype)


def _conjugate(
    down_OI: Tensor, free_OI: Tensor, hessian_II: Tensor, inverse_I: Tensor, enough_O1: Tensor, iterations: int
) -> Tensor:
    """The change of `free` weights after which `down`, minus their gradient, is small `enough` in every row.

    Conjugate gradients preconditioned by the diagonal (Jacobi), every row a system of its own, all in one product.
    """
    change_OI, along_OI = torch.zeros_like(down_OI), torch.zeros_like(down_OI)
    size_O1 = torch.zeros_like(enough_O1)
    for _ in range(iterations):
        before_O1, size_O1 = size_O1, _size(down_OI, inverse_I)
        if (size_O1 <= enough_O1).all():
            break
        along_OI = (down_OI * inverse_I).addcmul_(along_OI, _ratio(size_O1, before_O1))
        product_OI = along_OI @ hessian_II
        pace_O1 = _ratio(size_O1, (along_OI * product_OI).sum(dim=1, keepdim=True))
        change_OI.addcmul_(along_OI, pace_O1)
        down_OI = down_OI.addcmul(product_OI, pace_O1, value=-1).where(free_OI, 0)
    return change_OI


def _size(gradient_OI: Tensor, inverse_I: Tensor) -> Tensor:
    """Squared length of each row's gradient, each input measured in its own scale, (O, 1)."""
    return (gradient_OI.square() * inverse_I).sum(dim=1, keepdim=True)


def _ratio(above_O1: Tensor, below_O1: Tensor) -> Tensor:
    """Zero where nothing is left to divide by: such a row is done."""
    return (above_O1 / below_O1).where(below_O1 > 0, 0)
