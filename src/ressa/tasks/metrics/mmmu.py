"""MMMU's reading of open answers, by the rules of its evaluation program (MMMU-Benchmark/MMMU, eval_utils.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence

SIGNS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
EMPTY = {":", ",", ".", "!", "?", ";", "'"}


def is_right(answer: str, references: Sequence[str]) -> bool:
    """Whether what an answer comes to holds a reference text, or equals a reference number to two decimals."""
    wanted = [value for reference in references for value in _values(reference)]
    for found in _final_answers(answer):
        if isinstance(found, float):
            if found in wanted:
                return True
        elif any(isinstance(value, str) and value in found for value in wanted):
            return True
    return False


def _final_answers(answer: str) -> list[str | float]:
    """The ends of the sentences that say what the answer is, and every number in them.

    >>> _final_answers("So the final answer is 1,234.567 metres.")
    ['1,234.567 metres', 1234.0, 234.57]
    """
    text = answer.strip().strip(".").lower()
    parts = text.split("\n")  # the program splits at ". " before a capital too, but has lowered all letters by then
    keys = []
    for i, part in enumerate(parts):
        signs = (*SIGNS, "=") if i == len(parts) - 1 else SIGNS
        ends = [part.rsplit(sign, 1)[-1].strip() for sign in signs if sign in part]
        shortest = min(ends, key=len) if ends else ""
        if shortest and shortest not in EMPTY:
            keys.append(shortest)
    keys = keys or [text]
    numbers = [number for key in keys for pattern in NUMBERS for number in pattern.findall(key)]
    return [value for found in [*keys, *numbers] for value in _values(found)]


def _values(text: str) -> list[str | float]:
    """A number to two decimals, or the text in lower case; one letter only with a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]
