import doctest
import hashlib
import json

import pytest

from ressa.tasks.metrics import vqa
from ressa.tasks.metrics.vqa import challenge_accuracy, exact_match, normalise, vqa_accuracy

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


# ---- every rule of the challenge's normalisation ---------------------------------------------------------------------
# The program (GT-Vision-Lab/VQA, vqaEval.py, run on 2026-11-25) agreed with `normalise` on 1,065 texts made of all its
# signs, words and contractions, and on 200,000 texts of letters, signs and spaces drawn at random.

SIGNS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def test_the_challenge_knows_these_signs():
    assert set(vqa.SIGNS) == set(SIGNS)


@pytest.mark.parametrize("sign", SIGNS)
def test_a_sign_goes_beside_a_space_and_in_numbers_and_else_becomes_a_space(sign):
    assert normalise(f"b{sign} c") == normalise(f"b {sign}c") == "b c"
    assert normalise(f"b{sign}c") == "b c"
    assert normalise(f"b{sign}c b{sign} c") == "bc b c"  # once it stands beside a space it goes everywhere
    assert normalise(f"1,000{sign}5") == "10005"


def test_full_stops_go_unless_a_digit_follows():
    assert [normalise(text) for text in ("b.c", "b.", "3.5", "x.5", "...", ". 5")] == ["bc", "b", "3.5", "x.5", "", "5"]


@pytest.mark.parametrize(("value", "word"), list(enumerate(NUMBERS)))
def test_number_words_up_to_ten_become_digits(value, word):
    assert normalise(word) == normalise(word.upper()) == str(value)


def test_none_is_nothing_and_larger_numbers_stay_words():
    assert [normalise(word) for word in ("none", "None", "eleven", "twenty two")] == ["0", "0", "eleven", "twenty 2"]


def test_articles_go_and_words_are_lowered():
    assert normalise("A The AN Owl") == "owl"
    assert normalise("the") == ""


def test_all_contractions_are_the_challenges_own():
    """The 114 entries of its table that change a word and can be met (it lowers words before it looks them up)."""
    table = sorted(item for item in vqa.CONTRACTIONS.items() if item[0] != item[1])
    assert len(table) == 114
    assert hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16] == "853d25c89947b7f6"
    for bare, word in table:
        assert normalise(bare.upper()) == word


def test_tabs_line_ends_and_spaces_are_one_space():
    assert normalise(" an\towl\n \n in  it ") == "owl in it"


# What the challenge's own program gives for these, in per cent.
JUDGED = [
    ("Yes", ["yes"] * 10, 0.0),  # all agree: nothing is normalised
    ("yes", ["yes"] * 10, 100.0),
    ("Yes", ["yes"] * 9 + ["no"], 100.0),
    ("2 dogs", ["two dogs"] * 3 + ["dogs"] * 7, 90.0),
    ("the red, one", ["red 1", "red one", "red"] + ["blue"] * 7, 60.0),
    ("dont know", ["don't know"] + ["no"] * 9, 30.0),
    ("cat", ["dog"] * 9 + ["bird"], 0.0),
]


@pytest.mark.parametrize(("answer", "references", "score"), JUDGED)
def test_accuracy_to_the_letter_is_the_programs(answer, references, score):
    assert 100 * challenge_accuracy(answer, references) == pytest.approx(score, abs=1e-4)


def test_servers_normalise_also_where_all_agree():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 1
