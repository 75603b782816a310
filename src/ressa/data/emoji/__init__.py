"""Emoji scenes: the embedded dataset. Real art, nine places, questions whose answers are certain."""

from ressa.data.emoji.scenes import SPLITS
from ressa.data.emoji.write import write

__all__ = ["SPLITS", "write"]
