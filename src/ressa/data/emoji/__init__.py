"""Emoji scenes: the embedded dataset. Real art, nine places, questions whose answers are certain."""

from ressa.data.emoji.folder import write
from ressa.data.emoji.scenes import SPLITS

__all__ = ["SPLITS", "write"]
