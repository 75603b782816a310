"""Metrics against published examples, and against what the official scorers say of the same texts."""

from __future__ import annotations

import doctest
import json
import math
import warnings

import numpy as np
import pytest
import torch

from ressa.errors import RessaError
from ressa.evaluation import retrieve
from ressa.tasks import base
from ressa.tasks.metrics import basic, captions, coco, mmmu, ptb
from ressa.tasks.metrics.basic import caption_scores, choice, recall_at, says_no, yes_or_no
from ressa.tasks.metrics.intervals import Measured, compared, interval

# ---- captions --------------------------------------------------------------------------------------------------------

CANDIDATES = [
    "a man riding a wave on top of a surfboard",
    "a dog",
    "two men playing a game of baseball on a field",
    "A black-and-white cat's bowl (empty), on the floor.",
    "a a a a a a a a",
    "",
    "the train is at the station",
    "It isn't a two-story bus; it's a U.S. mail truck at 10:30 a.m.",
]
REFERENCES = [
    ["A man riding a wave on a surfboard.", "a surfer rides a large wave in the ocean", "Man on a board, surfing."],
    ["A dog is sitting on a couch.", "a brown dog on a sofa"],
    [
        "Two men play baseball.",
        "a baseball game with two players on the field",
        "Men playing a game of baseball on a field",
    ],
    ["a cat's empty bowl on the floor", "A black-and-white bowl for a cat."],
    ["a plate of food", "some food on a plate with a fork"],
    ["a red bus on a street", "bus"],
    ["The train is at the station.", "the train is at the station"],
    ["A U.S. mail truck isn't a bus", "a mail truck at 10:30 a.m., near St. Louis"],
]
# What pycocoevalcap 1.2 (with Java 17, its PTBTokenizer and METEOR 1.5) says of them, 2026-11-25.
BLEU = [0.774194, 0.681554, 0.597119, 0.525117]
CIDER = [2.464373, 1.463437, 4.005119, 1.96558, 0.024096, 0.0, 10.0, 2.039176]
CIDER_ALL, METEOR, ROUGE_L = 2.745223, 0.377759, 0.606775

# Captions and the words that Stanford's PTBTokenizer 3.4.1 makes of them (-lowerCase, COCO's punctuation dropped).
TOKENIZED = {
    "A man's dog doesn't like it; it's black-and-white.": "a man 's dog does n't like it it 's black-and-white",
    "Two-story building (with a red roof).": "two-story building -lrb- with a red roof -rrb-",
    'He said "hello there" to the man.': "he said hello there to the man",
    "A 1,000 lb. bear at 10:30 a.m. near St. Louis.": "a 1,000 lb bear at 10:30 a.m. near st. louis",
    "Mr. Smith and Dr. Jones, U.S. citizens.": "mr. smith and dr. jones u.s. citizens",
    "It's 3.5 ft. tall & 50% off: $5.00!": "it 's 3.5 ft. tall & 50 % off $ 5.00",
    "and/or a half 1/2 of a pizza...": "and/or a half 1/2 of a pizza",
    "I cannot believe they're gonna wanna go": "i can not believe they 're gon na wan na go",
    "the players' bench isn't what I'd've called 'nice'": "the players bench is n't what i 'd 've called nice",
    "A man in a t-shirt, jeans, etc.": "a man in a t-shirt jeans etc.",
    "a #1 sign @ home": "a # 1 sign @ home",
    "A train -- very long -- passes by": "a train very long passes by",
    "A woman,holding a dog": "a woman holding a dog",
    "a cat [on a mat] {and} <b>": "a cat -lsb- on a mat -rsb- -lcb- and -rcb- <b>",
    "Don't they? We'll see.": "do n't they we 'll see",
    "rock 'n' roll in the '90s": "rock 'n' roll in the '90s",
    "a stop sign.A car": "a stop sign.a car",
    "x-ray of an O'Brien pub": "x-ray of an o'brien pub",
    "what?!": "what ?!",
    "8 o'clock": "8 o'clock",
    "A plate of food with broccoli ,carrots .": "a plate of food with broccoli carrots",
    "an 80's band": "an 80 's band",
    "J. Smith at 5 p.m.": "j. smith at 5 p.m.",
    "5'10\" man": "5 10 man",
    "a table w/ food": "a table w / food",
    "a “quoted” word — and dash – here…": "a quoted word and dash here",
}


@pytest.mark.parametrize("caption", TOKENIZED)
def test_captions_are_tokenized_as_stanfords_program_does(caption):
    assert " ".join(ptb.words(caption)) == TOKENIZED[caption]


def tokenized():
    return [ptb.words(c) for c in CANDIDATES], [[ptb.words(r) for r in others] for others in REFERENCES]


def test_bleu_without_java_is_cocos_to_four_decimals():
    sums = captions.bleu_counts(*tokenized()).sum(0)
    assert [float(captions.bleu(sums, n)) for n in (1, 2, 3, 4)] == pytest.approx(BLEU, abs=1e-5)


def test_cider_without_java_is_cocos_to_four_decimals():
    scores = captions.cider(*tokenized())
    assert scores.tolist() == pytest.approx(CIDER, abs=1e-5)
    assert scores.mean() == pytest.approx(CIDER_ALL, abs=1e-5)


PAPINENI = "It is a guide to action which ensures that the military always obeys the commands of the party"
PAPINENI_REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]


def test_bleu_gives_the_worked_examples_of_its_paper():
    """Papineni et al. 2002, section 2.1: modified precisions 17/18 and 10/17, and 2/7 for "the" seven times."""
    counts = captions.bleu_counts([PAPINENI.split()], [[r.split() for r in PAPINENI_REFERENCES]])[0]
    assert counts.tolist()[:2] == [18, 18]
    assert (counts[6] / counts[2], counts[7] / counts[3]) == (17 / 18, 10 / 17)
    cat = [[["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]]
    counts = captions.bleu_counts([["the", "the", "the", "the", "the", "the", "the"]], cat)[0]
    assert counts[6] / counts[2] == 2 / 7


def test_bleu_gives_the_worked_examples_of_nltk():
    """nltk.translate.bleu_score: sentence_bleu 0.5045..., corpus_bleu 0.5920..."""
    references = [r.split() for r in PAPINENI_REFERENCES]
    own = ["he", "read", "the", "book", "because", "he", "was", "interested", "in", "world", "history"]
    other = ["he", "was", "interested", "in", "world", "history", "because", "he", "read", "the", "book"]
    first = captions.bleu_counts([PAPINENI.split()], [references])
    assert captions.bleu(first.sum(0)) == pytest.approx(0.5046, abs=5e-5)
    both = captions.bleu_counts([PAPINENI.split(), own], [references, [other]])
    assert captions.bleu(both.sum(0)) == pytest.approx(0.5920, abs=1e-4)


def test_a_perfect_caption_with_its_own_words_has_cider_ten():
    words = [["a", "red", "owl", "sits", "there"], ["two", "blue", "cats", "run", "away"]]
    assert captions.cider(words, [[w] for w in words]).tolist() == pytest.approx([10, 10])
    assert captions.cider([words[0]] * 2, [[w] for w in words])[1] == 0


def test_caption_scores_come_without_java_and_say_what_is_missing(monkeypatch):
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    measured = caption_scores(CANDIDATES, REFERENCES)
    assert list(measured) == ["CIDEr", "BLEU_4", "BLEU_3", "BLEU_2", "BLEU_1"]
    assert measured["CIDEr"].value == pytest.approx(CIDER_ALL, abs=1e-5)
    assert [measured[f"BLEU_{n}"].value for n in (1, 2, 3, 4)] == pytest.approx(BLEU, abs=1e-5)
    assert coco.missing("METEOR")
    missing = basic.captions_missing()
    assert missing["METEOR"] == "pycocoevalcap is not installed: pip install 'ressa[captions]'"


def test_without_java_or_spices_models_the_reason_is_told(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = [str(tmp_path)]  # noqa: RUF012

    monkeypatch.setattr(coco, "find_spec", lambda name: Spec)
    monkeypatch.setattr(coco.shutil, "which", lambda name: None)
    assert coco.missing("METEOR") == "there is no java on the path: install a Java runtime"
    assert coco.missing("ROUGE_L") is None
    monkeypatch.setattr(coco.shutil, "which", lambda name: "/usr/bin/java")
    assert coco.missing("METEOR") is None
    assert "stanford-corenlp-3.6.0-models.jar, which it would download" in coco.missing("SPICE")
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    (tmp_path / "spice" / "lib" / coco.MODELS).touch()
    assert coco.missing("SPICE") is None


@pytest.mark.skipif(coco.missing("METEOR") is not None, reason="needs ressa[captions] and Java")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_with_java_the_standard_implementation_gives_its_recorded_scores():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = caption_scores(CANDIDATES, REFERENCES)
    assert coco.missing("METEOR") is None
    assert coco.tokenize(list(TOKENIZED)) == [text.split() for text in TOKENIZED.values()]
    assert measured["METEOR"].value == pytest.approx(METEOR, abs=1e-5)
    assert measured["ROUGE_L"].value == pytest.approx(ROUGE_L, abs=1e-5)
    assert measured["CIDEr"].value == pytest.approx(CIDER_ALL, abs=1e-5)


# ---- yes or no, choices, ranks, open answers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "no"),
    [
        ("no", True),
        ("No, there is not.", True),
        ("There is not a cat", True),
        ("Yes. No doubt.", False),  # the first sentence decides
        ("yes", False),
        ("nothing", False),
        ("NO", False),  # as POPE's program has it
        ("", False),
    ],
)
def test_popes_reading_of_an_answer(answer, no):
    assert says_no(answer) is no


def test_popes_scores_are_those_of_its_program():
    """TP 3, FP 1, FN 2, TN 4 through the formulas of AoiDragon/POPE, evaluate.py."""
    said = [True] * 3 + [True] + [False] * 2 + [False] * 4
    true = [True] * 3 + [False] + [True] * 2 + [False] * 4
    values = {name: measured.value for name, measured in yes_or_no(said, true).items()}
    assert values == pytest.approx({"precision": 0.75, "recall": 0.6, "f1": 2 / 3, "accuracy": 0.7, "yes_ratio": 0.4})
    never = {name: measured.value for name, measured in yes_or_no([False] * 4, [True, False] * 2).items()}
    assert (never["precision"], never["recall"], never["f1"], never["accuracy"]) == (0, 0, 0, 0.5)


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B. a black cat", 1),
        ("The answer is C.", 2),
        ("Option B", 1),
        ("I think it is (A) because", 0),
        ("A cat", 1),  # not the letter A
        ("A black cat!", 2),
        ("it shows a black cat in a bag", 2),  # holds "a cat"? no: the longest that it holds
        ("E", None),
        ("", None),
        ("something", None),
    ],
)
def test_which_option_an_answer_means(answer, index):
    assert choice(answer, ["dog", "cat", "a black cat", "bird"]) == index


@pytest.mark.parametrize(
    ("answer", "references", "right"),
    [
        ("The final answer is 24.32", ["24.318"], True),  # two decimals
        ("so it is 1,000", ["1000"], True),
        ("x = 7", ["7"], True),
        ("It is photosynthesis.", ["Photosynthesis"], True),
        ("The result is 12", ["13"], False),
        ("a 5 and b", ["b"], True),  # one letter counts only beside a space
        ("abc", ["b"], False),
        ("", ["b"], False),
    ],
)
def test_open_answers_are_read_as_mmmus_program_does(answer, references, right):
    assert mmmu.is_right(answer, references) is right


def test_ranks_count_the_wrong_items_that_are_as_good_as_the_right_one():
    scores = np.array([[0.9, 0.1, 0.5, 0.4], [0.2, 0.95, 0.6, 0.6]])  # two pictures, two captions each
    assert retrieve.ranked(scores, [0, 0, 1, 1]) == [1, 2, 1, 2, 1, 1]
    assert retrieve.ranked(np.zeros((2, 4)), [0, 0, 1, 1]) == [3, 3, 2, 2, 2, 2]  # a model that cannot tell


def test_recall_at_k_counts_ranks_up_to_k():
    assert {n: m.value for n, m in recall_at([1, 2, 6, 11], "TR").items()} == {"TR@1": 0.25, "TR@5": 0.5, "TR@10": 0.75}


# ---- how sure --------------------------------------------------------------------------------------------------------


def mean(values):
    return Measured(np.array(values, dtype=float)[:, None])


def test_the_interval_of_a_share_is_the_binomials():
    """100 of 400: the normal approximation gives 0.25 ± 1.96 · sqrt(0.25 · 0.75 / 400)."""
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    low, high = interval(mean([1] * 100 + [0] * 300), draws=4000)
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.005)


def test_intervals_are_the_same_each_time_and_cover_the_score_of_sums():
    rows = captions.bleu_counts(*tokenized())
    measured = Measured(rows, lambda means: captions.bleu(means * len(rows)))
    assert interval(measured) == interval(measured)
    low, high = interval(measured)
    assert low < measured.value < high


def test_two_models_that_answer_alike_do_not_differ():
    told = compared(mean([1, 0, 1, 0] * 10), mean([1, 0, 1, 0] * 10))
    assert (told["difference"], told["p"], told["interval"]) == (0, 1, [0, 0])


def test_the_paired_p_is_that_of_the_exact_sign_test():
    """Of 10 questions on which two models differ one is right on 9: p = 2 · (10 + 1) / 2^10 = 0.0215 (exact)."""
    ours, theirs = [1] * 9 + [0] + [1] * 30, [0] * 9 + [1] + [1] * 30
    told = compared(mean(ours), mean(theirs), draws=20_000)
    assert told["p"] == pytest.approx(22 / 1024, abs=0.004)
    assert told["interval"][0] > 0
    back = compared(mean(theirs), mean(ours))
    assert back["difference"] == -told["difference"]


def test_pairing_tells_apart_what_separate_intervals_cannot():
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    ours, theirs = mean(hard), mean(hard - 0.02)
    assert interval(ours)[0] < theirs.value < interval(ours)[1]
    assert compared(ours, theirs)["p"] < 0.01


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        compared(mean([1, 0]), mean([1]))


# ---- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [ptb, basic, base, mmmu], ids=lambda m: m.__name__)
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_a_prompt_with_an_unknown_field_is_refused():
    assert base.check_template("{question} ({options})") == "{question} ({options})"
    for wrong in ("{other}", "{0}", "{question", "{question.__class__.x}"):
        with pytest.raises(RessaError, match="prompt: may hold"):
            base.check_template(wrong)


def test_scores_are_plain_numbers_that_json_can_hold():
    told = {name: m.value for name, m in caption_scores(["a cat"], [["a cat"]]).items() if m.fixed is None}
    assert json.loads(json.dumps(told)) == told
    assert not any(isinstance(value, torch.Tensor) for value in told.values())
