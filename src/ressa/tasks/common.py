"""What several tasks share besides the defaults of `base`: prompts, generation settings, measures."""

from __future__ import annotations

from collections.abc import Sequence

from ressa.tasks.base import Generation, Sample
from ressa.tasks.metrics.basic import caption_scores, choice, each
from ressa.tasks.metrics.intervals import Measured
from ressa.tasks.metrics.vqa import challenge_accuracy, exact_match, vqa_accuracy

CHOOSE = {
    "blip": "{hint}{question} Options: {options}",
    "chat": "{hint}{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
}
DESCRIBE = {"blip": None, "chat": "Provide a one-sentence caption for the provided image."}

CAPTION = {
    "blip": Generation(max_new_tokens=30, num_beams=5, min_new_tokens=8, length_penalty=1.0),
    "vicuna": Generation(max_new_tokens=80, num_beams=5, min_new_tokens=10, length_penalty=1.0),
    "chat": Generation(max_new_tokens=64),
}


def vqa(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    scorers = {"vqa_accuracy": vqa_accuracy, "challenge_accuracy": challenge_accuracy, "exact_match": exact_match}
    return {name: _each(scorer, samples, answers) for name, scorer in scorers.items()}


def matches(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    return {"exact_match": _each(exact_match, samples, answers)}


def described(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    return caption_scores(answers, [sample.record.references for sample in samples])


def chosen(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Measured]:
    return {"accuracy": each([float(is_right(s, answer)) for s, answer in zip(samples, answers, strict=True)])}


def is_right(sample: Sample, answer: str) -> bool:
    return choice(answer, sample.choices) == sample.right


def _each(scorer, samples: Sequence[Sample], answers: Sequence[str]) -> Measured:
    return each([scorer(answer, s.record.references) for s, answer in zip(samples, answers, strict=True)])
