"""Repair: train what pruning left, against the dense original, without losing one zero."""

from ressa.repairing.sparse_lora import SparseLoraConfig
from ressa.repairing.verb import repair

__all__ = ["SparseLoraConfig", "repair"]
