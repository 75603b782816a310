"""Annotations of a picture as a record of `ressa.data.records`, in three forms.

plain      {"image", "caption"}, or {"image", "question", "answer"}
prefix     {"image", "prefix", "caption"}: the caption, cut between two words of its first half. The model reads the
           first part and learns the second (BLIP-2, Li et al. 2023, section 3.3). ECoFLaP's program, on which RESSA's
           builds, cuts between any two characters of the first half; here words stay whole, since the rest of one
           is no word to a tokenizer.
instruct   {"image", "messages"}: one of the instructions of InstructBLIP (Dai et al. 2023, appendix C) and the caption,
           or the question and its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ressa.data.items import Annotation

INSTRUCTIONS = (  # of InstructBLIP, for captions
    "A short image caption:",
    "A short image description:",
    "A photo of",
    "An image that shows",
    "Write a short description for the image.",
    "Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short depiction of the picture.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the picture.",
)
ONE_WORD = "one word, which has no prefix"
ASKED = "question, which has no prefix"


def record(annotation: Annotation, form: str, drawn: int) -> Mapping[str, Any] | str:
    """The record without its picture, or the reason why there is none. `drawn` is any whole number: the draw."""
    if form == "prefix":
        return ASKED if annotation.question is not None else _prefix(annotation.text, drawn)
    if form == "instruct":
        asked = INSTRUCTIONS[drawn % len(INSTRUCTIONS)] if annotation.question is None else annotation.question
        answer = Counter((annotation.text, *annotation.others)).most_common(1)[0][0]
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
    if annotation.question is None:
        return {"caption": annotation.text}
    answered = {"answers": [annotation.text, *annotation.others]} if annotation.others else {"answer": annotation.text}
    return {"question": annotation.question, **answered}


def _prefix(caption: str, drawn: int) -> Mapping[str, Any] | str:
    words = caption.split()
    if len(words) < 2:
        return ONE_WORD
    cut = 1 + drawn % max(1, len(words) // 2)
    return {"prefix": " ".join(words[:cut]), "caption": " ".join(words[cut:])}
