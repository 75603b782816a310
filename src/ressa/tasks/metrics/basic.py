"""Metrics over answers: VQA accuracy, exact match, choices, yes or no, ranks, captions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase

import numpy as np

from ressa.tasks.metrics import captions, coco
from ressa.tasks.metrics.intervals import Measured
from ressa.tasks.metrics.vqa import normalise

LETTERS = (  # the first that finds the letter of an option
    re.compile(r"^\W*([A-Z])(?:[.:),]|\W*$)"),  # B. a cat
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"(?i:answer|option|choice)(?: is)?:? *([A-Z])(?:\W|$)"),
    re.compile(r"^([B-HJ-Z]) "),  # "A" and "I" begin sentences
)


def each(values: Sequence[float], of: Sequence[str] = ()) -> Measured:
    """A score that is the mean of one number a unit."""
    return Measured(np.array(values, dtype=float)[:, None], of=tuple(of))


def choice(answer: str, choices: Sequence[str]) -> int | None:
    """Which option an answer means, None if no single one.

    A letter alone, at the front ("B. a cat"), in brackets or after "answer is"; else the one option that the answer is,
    or else holds; of several that it holds the longest. (MMMU's own program guesses at random where none is found;
    here that is wrong.)

    >>> [choice(said, ["a dog", "a cat"]) for said in ("B", "(b) a cat", "The answer is A.", "a cat!", "cats")]
    [1, 1, 0, 1, None]
    """
    text = answer.strip()
    if re.fullmatch(r"\W*[a-z]\W*", text) or re.match(r"\([a-z]\)", text):
        text = text.upper()
    for pattern in LETTERS:
        if (match := pattern.search(text)) and (index := ascii_uppercase.index(match.group(1))) < len(choices):
            return index
    words, known = f" {normalise(text)} ", [normalise(option) for option in choices]
    if words.strip() in known:
        return known.index(words.strip())
    held = sorted((len(option), i) for i, option in enumerate(known) if option and f" {option} " in words)
    return held[-1][1] if held and (len(held) < 2 or held[-1][0] > held[-2][0]) else None


def says_no(answer: str) -> bool:
    """POPE's reading of an answer: "no" or "not" in its first sentence; anything else is a yes."""
    return bool({"No", "no", "not"} & set(answer.split(".")[0].replace(",", "").split(" ")))


def yes_or_no(said_yes: Sequence[bool], is_yes: Sequence[bool]) -> dict[str, Measured]:
    """Accuracy, precision, recall and F1 of "yes", and how often "yes" is said (Li et al. 2023, POPE)."""
    pairs = list(zip(said_yes, is_yes, strict=True))
    rows = np.array([[s and t, s and not t, t and not s, not s and not t] for s, t in pairs], dtype=float)

    def ratio(top: Sequence[float], bottom: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
        def score(means: np.ndarray) -> np.ndarray:
            below = means @ np.array(bottom)
            return np.divide(means @ np.array(top), below, out=np.zeros_like(below), where=below > 0)

        return score

    formulas = {
        "f1": ([2.0, 0, 0, 0], [2.0, 1, 1, 0]),
        "accuracy": ([1.0, 0, 0, 1], [1.0, 1, 1, 1]),
        "precision": ([1.0, 0, 0, 0], [1.0, 1, 0, 0]),
        "recall": ([1.0, 0, 0, 0], [1.0, 0, 1, 0]),
        "yes_ratio": ([1.0, 1, 0, 0], [1.0, 1, 1, 1]),
    }
    return {name: Measured(rows, ratio(top, bottom)) for name, (top, bottom) in formulas.items()}


def recall_at(ranks: Sequence[int], name: str, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Measured]:
    """{name@k: share of queries whose first right item stands among the first k}; ranks count from 1."""
    return {f"{name}@{k}": each([float(rank <= k) for rank in ranks]) for k in ks} if ranks else {}


def caption_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Measured]:
    """CIDEr, BLEU-1 to 4, and METEOR, ROUGE-L and SPICE where `coco.missing` has nothing against it."""
    counts = [len(others) for others in references]
    flat = coco.tokenize([*answers, *(text for others in references for text in others)])
    ours, rest = flat[: len(answers)], iter(flat[len(answers) :])
    theirs = [[next(rest) for _ in range(count)] for count in counts]
    found = {"CIDEr": each(captions.cider(ours, theirs).tolist())}
    rows = captions.bleu_counts(ours, theirs)
    for n in (4, 3, 2, 1):
        found[f"BLEU_{n}"] = Measured(rows, _bleu(n, len(rows)))
    for metric in coco.METRICS:
        if coco.missing(metric) is None:
            total, per = coco.scores(metric, ours, theirs)
            found[metric] = Measured(per[:, None], fixed=total)
    return found


def _bleu(n: int, count: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda means: captions.bleu(means * count, n)


def captions_missing() -> dict[str, str]:
    """{metric: why not} for what `caption_scores` leaves out on this machine."""
    return {metric: why for metric in coco.METRICS if (why := coco.missing(metric))}
