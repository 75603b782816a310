"""BLEU and CIDEr of captions, without Java: the same numbers as COCO's evaluation gives for the same words.

BLEU: Papineni et al. 2002, equation 2 and section 2.2, over the whole corpus, with the closest reference length.
CIDEr: Vedantam et al. 2015, in the form "CIDEr-D" (section 7: clipped counts, a Gaussian penalty on length, times 10)
that COCO's server and `pycocoevalcap` compute under the name CIDEr.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4  # words of an n-gram
SIGMA = 6.0
SMALL, TINY = 1e-9, 1e-15  # COCO's way of dividing by nothing

Words = Sequence[str]
Grams = list[Counter[tuple[str, ...]]]


def grams(words: Words) -> Grams:
    """How often each n-gram occurs, for n from 1 to 4."""
    return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, LONGEST + 1)]


def bleu_counts(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """(captions, 10): own length, closest reference length, then guessed and right n-grams for n from 1 to 4.

    Of two references equally close the shorter counts. Sums of rows give `bleu` of those captions.
    """
    rows = []
    for own, others in zip(candidates, references, strict=True):
        closest = min((abs(len(other) - len(own)), len(other)) for other in others)[1]
        counted, known = grams(own), [grams(other) for other in others]
        right = []
        for n, mine in enumerate(counted):
            most: Counter[tuple[str, ...]] = Counter()
            for other in known:
                most |= other[n]
            right.append((mine & most).total())
        guessed = [max(0, len(own) - n) for n in range(LONGEST)]
        rows.append([len(own), closest, *guessed, *right])
    return np.array(rows, dtype=float)


def bleu(sums: np.ndarray, n: int = LONGEST) -> np.ndarray:
    """BLEU-n, 0 to 1, of summed counts (..., 10)."""
    own, closest = sums[..., 0], sums[..., 1]
    guessed, right = sums[..., 2 : 2 + n], sums[..., 2 + LONGEST : 2 + LONGEST + n]
    precision = np.prod((right + TINY) / (guessed + SMALL), axis=-1) ** (1 / n)
    ratio = (own + TINY) / (closest + SMALL)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """CIDEr of each caption (a perfect one has about 10); their mean is the corpus's.

    How rare an n-gram is is counted over the images of this very corpus, so a score of a subset is not the mean of its
    captions' scores in the whole.
    """
    known = [[grams(other) for other in others] for others in references]
    seen: Counter[tuple[str, ...]] = Counter()
    for others in known:
        seen.update({gram for other in others for counter in other for gram in counter})
    images = math.log(len(candidates)) if candidates else 0.0
    rarity = {gram: images - math.log(count) for gram, count in seen.items()}

    def weigh(counted: Grams) -> list[tuple[dict[tuple[str, ...], float], float]]:
        weighed = []
        for counter in counted:
            vector = {gram: count * rarity.get(gram, images) for gram, count in counter.items()}
            weighed.append((vector, math.sqrt(sum(value * value for value in vector.values()))))
        return weighed

    scores = []
    for own, others in zip(candidates, known, strict=True):
        counted = grams(own)
        mine = weigh(counted)
        total = sum(_alike(mine, counted, weigh(other), other) for other in others)
        scores.append(10.0 * total / len(others))
    return np.array(scores)


def _alike(
    mine: list[tuple[dict[tuple[str, ...], float], float]],
    counted: Grams,
    theirs: list[tuple[dict[tuple[str, ...], float], float]],
    other: Grams,
) -> float:
    """The mean over n of clipped cosines, with the penalty on length.

    Length is counted in pairs of words, as COCO's evaluation does, so one word and none are equally long.
    """
    difference = counted[1].total() - other[1].total()
    total = 0.0
    for (vector, size), (reference, reference_size) in zip(mine, theirs, strict=True):
        common = sum(min(value, reference.get(gram, 0.0)) * reference.get(gram, 0.0) for gram, value in vector.items())
        total += common / (size * reference_size) if size and reference_size else common
    return total / LONGEST * math.exp(-(difference**2) / (2 * SIGMA**2))
