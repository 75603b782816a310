"""Two small pruned linears, SparseLoRA on them, and the operands of its product."""

from __future__ import annotations

import peft
import torch
from torch import nn

from ressa.repairing.sparse_lora import SparseLoraConfig

OUT, IN, RANK = 12, 8, 3


class Pair(nn.Module):
    """Two linears and one that is not targeted; both targets have about half of their weights at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(IN, OUT), nn.Linear(OUT, IN, bias=False), nn.Linear(IN, 2)
        for layer in (self.first, self.second):
            layer.weight.data[torch.rand_like(layer.weight) < 0.5] = 0

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))))


def pair(seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    return Pair()


def adapted(model: nn.Module, **settings):
    return peft.get_peft_model(model, SparseLoraConfig(rank=RANK, target_modules=["first", "second"], **settings))


def train_a_bit(model: nn.Module) -> None:
    """Give every trainable parameter a value away from its start."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def operands(dtype=torch.float64, tokens=(2, 5)):
    """x, weight, bias, A, B with gradients on; the weight has zeros, and one row of nothing else."""
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN, dtype=dtype)
    weight[torch.rand(OUT, IN) < 0.6] = 0
    weight[3] = 0
    others = (torch.randn(*tokens, IN, dtype=dtype), torch.randn(OUT, dtype=dtype))
    low_rank = (torch.randn(RANK, IN, dtype=dtype), torch.randn(OUT, RANK, dtype=dtype))
    x, bias, a, b = (t.requires_grad_() for t in (*others, *low_rank))
    return x, weight.requires_grad_(), bias, a, b
