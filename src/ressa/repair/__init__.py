"""Repair: train what pruning left, against the dense original, without losing one zero."""

from ressa.repair.sparse_lora import SparseLoraConfig
from ressa.repair.train import repair

__all__ = ["SparseLoraConfig", "repair"]
