"""VQA accuracy and exact match, by the rules of the VQA challenge (Antol et al. 2015; visualqa.org/evaluation.html)."""

from __future__ import annotations

import re
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS)}
SIGNS = ';/[]"{}()=+\\_-><@`,?!'
# Lower-case forms only: the challenge lowers every word before it looks them up.
CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've "
)


def _bare(word: str) -> list[str]:
    """The word with one of its apostrophes left out: what the challenge puts right.

    >>> _bare("he'd've")
    ["hed've", "he'dve"]
    """
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {bare: word for word in CONTRACTED.split() for bare in _bare(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the challenge's own table has this one the other way round


def normalise(text: str) -> str:
    """The form in which answers are compared.

    Punctuation goes (or becomes a space between letters), full stops go unless a digit follows, words are lowered,
    number words become digits, articles go, contractions get their apostrophes.

    >>> normalise("The two  dogs, dont they?")
    "2 dogs don't they"
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joined = re.search(r"\d,\d", text) is not None  # 1,000
    gone = {s for s in SIGNS if joined or f"{s} " in text or f" {s}" in text}
    text = "".join("" if c in gone else " " if c in SIGNS else c for c in text)
    text = re.sub(r"\.(?!\d)", "", text)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals any reference after normalisation, else 0."""
    return float(normalise(answer) in {normalise(reference) for reference in references})


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """How far the people who were asked agree with the answer: min(agreeing / 3, 1), averaged over leaving one out.

    Ten people answered each question of VQAv2; one, two, three or more of them agreeing give 0.3, 0.6, 0.9 and 1. With
    fewer answers than four, agreeing with all the others is enough: 3 becomes min(3, answers - 1); a single answer is
    compared as it is. The challenge normalises the people's answers in part only, since VQAv2's are stored normalised;
    here both sides are normalised alike, so that other data gets the same treatment.
    """
    wanted = normalise(answer)
    agree = sum(normalise(reference) == wanted for reference in references)
    n = len(references)
    if n < 2:
        return float(agree)
    enough = min(3, n - 1)
    left_in, left_out = min(agree / enough, 1.0), min(max(agree - 1, 0) / enough, 1.0)
    return (agree * left_out + (n - agree) * left_in) / n


def challenge_accuracy(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy to the letter of the challenge's program (GT-Vision-Lab/VQA, vqaEval.py).

    It differs from `vqa_accuracy` in one thing: where all the people gave the same answer it normalises nothing, so
    "Yes" is wrong where all said "yes". Servers and most papers normalise always.
    """
    stripped = [" ".join(reference.replace("\t", " ").splitlines()).strip() for reference in references]
    if len(set(stripped)) > 1:
        return vqa_accuracy(answer, references)
    agree = len(references) if " ".join(answer.replace("\t", " ").splitlines()).strip() in stripped else 0
    return min(agree / min(3, max(len(references) - 1, 1)), 1.0)
