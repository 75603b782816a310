import doctest

import pytest

from ressa.evaluate import vqa
from ressa.evaluate.vqa import exact_match, normalise, vqa_accuracy

# What the challenge's own evaluation code makes of these (salesforce/LAVIS lavis/common/vqa_tools/vqa_eval.py,
# commit 506965b, run on 2025-11-21).
OFFICIAL = {
    "The  cat": "cat",
    "a\tdog\n": "dog",
    "Two": "2",
    "none": "0",
    "ten": "10",
    "eleven": "eleven",
    "dont": "don't",
    "couldn'tve": "couldn't've",
    "couldntve": "couldntve",
    "it's": "it's",
    "yes.": "yes",
    "3.5": "3.5",
    "3.": "3",
    ".5": ".5",
    "U.S.": "us",
    "1,000": "1000",
    "1,000-2": "10002",
    "x-ray": "x ray",
    "red, white": "red white",
    "red,white": "red white",
    "yes!": "yes",
    "10:30": "10:30",
    "black/white": "black white",
    "(left)": "left",
}


@pytest.mark.parametrize("text", OFFICIAL)
def test_answers_are_normalised_as_the_challenge_does(text):
    assert normalise(text) == OFFICIAL[text]


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_of_ten_people_the_challenges_score_for_each_number_that_agree(agreeing, score):
    references = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert vqa_accuracy("Red.", references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("references", "score"),
    [(["red"], 1.0), (["blue"], 0.0), (["red", "red"], 1.0), (["red", "blue"], 0.5), (["red"] * 3, 1.0), ([], 0.0)],
)
def test_with_fewer_people_agreeing_with_all_others_is_enough(references, score):
    assert vqa_accuracy("red", references) == pytest.approx(score)


def test_both_sides_are_normalised():
    assert vqa_accuracy("2", ["Two."]) == exact_match("2", ["Two."]) == 1


def test_exact_match_takes_any_reference_but_not_a_part_of_one():
    assert exact_match("a red", ["blue", "Red!"]) == 1
    assert exact_match("red", ["dark red"]) == exact_match("", ["red"]) == 0


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(vqa).failed == 0
