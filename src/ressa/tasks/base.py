"""What a task is: where its questions come from, how each family of models is asked, what counts as right.

Prompts of BLIP-2 and InstructBLIP are those of LAVIS's evaluation configs ("Question: {} Short answer:", put around the
text by `data.prompts`) and of InstructBLIP's appendix (options in brackets); chat models get the wording of LLaVA-1.5
(Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning", table 7). Generation settings of BLIP are those
of the LAVIS configs that RESSA evaluates with; chat models answer greedily.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ressa import families
from ressa.data.items import Format
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.tasks.metrics.intervals import Measured

FIELDS = ("question", "options", "hint")


@dataclass(frozen=True)
class Generation:
    """How answers are generated: greedily, or by beams."""

    max_new_tokens: int = 32
    num_beams: int = 1
    min_new_tokens: int | None = None
    length_penalty: float | None = None

    def settings(self) -> dict[str, Any]:
        """What `model.generate` is given."""
        settings: dict[str, Any] = {"do_sample": False, "num_beams": self.num_beams}
        settings["max_new_tokens"] = self.max_new_tokens
        if self.min_new_tokens is not None:
            settings["min_new_tokens"] = min(self.min_new_tokens, self.max_new_tokens)
        if self.num_beams > 1 and self.length_penalty is not None:
            settings["length_penalty"] = self.length_penalty
        return settings


GREEDY = Generation()
ANSWER = {"blip": "{question}", "chat": "{question}\nAnswer the question using a single word or phrase."}
_SHORT = Generation(max_new_tokens=10, num_beams=5, min_new_tokens=1, length_penalty=-1.0)
SHORT = {"blip": _SHORT, "vicuna": _SHORT, "chat": Generation(max_new_tokens=16)}


@dataclass(frozen=True)
class Source:
    """Where a task's files are: a folder, one file or the name of a hub dataset; which split; where pictures lie."""

    data: Any
    split: str
    images: Path | None = None


@dataclass(frozen=True)
class Sample:
    """One thing to ask, as the benchmark words it.

    record: picture, bare question (None: describe the picture), references.
    kinds: what scores are broken down by, {"answer type": "number"}; the first is the record's own `kind`.
    choices, right: the options and the index of the right one, for multiple choice.
    group: samples of one group are right together or not at all (MMBench's rotated options).
    """

    record: Record
    kinds: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    right: int | None = None
    hint: str = ""
    group: str = ""


# Scores of samples and the answers to them: {metric: Measured}; the first is the task's own.
Measure = Callable[[Sequence[Sample], Sequence[str]], dict[str, Measured]]


@dataclass(frozen=True)
class Reading:
    """What was read of a task's files, and how many records were left out, by reason."""

    samples: list[Sample]
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A benchmark.

    files, hub: what it reads, for people. `split` is asked if the user names none.
    asks: by family of models ("blip": BLIP-2 and InstructBLIP, "chat": all others), what stands in place of the
        question, with {question}, {options} and {hint}; None asks for a caption as the family was taught to.
    how: by family ("vicuna": InstructBLIP with a decoder), how answers are generated.
    mode: "answer", "choice" (options; by likelihood or generation) or "retrieval".
    missing: {metric: why it cannot be computed here}.
    format: its official files as items, for `ressa data NAME`; None if it cannot be trained on.
    """

    name: str
    title: str
    files: str
    split: str
    read: Callable[[Source], Reading]
    measure: Measure
    metrics: str
    asks: Mapping[str, str | None] = field(default_factory=lambda: ANSWER)
    how: Mapping[str, Generation] = field(default_factory=lambda: SHORT)
    hub: str = ""
    mode: str = "answer"
    missing: Callable[[], dict[str, str]] = dict
    format: Format | None = None


def family(processor: Any, config: Any = None) -> str:
    """ "blip", "vicuna" (InstructBLIP with a decoder-only language model) or "chat"."""
    known, inner = families.of_processor(processor), getattr(config, "text_config", None)
    decoder = inner is not None and not getattr(inner, "is_encoder_decoder", False)
    return (decoder and known.decoder_wording) or known.wording


def asked(sample: Sample, template: str | None, kind: str) -> Record:
    """The record as the model gets it: its question as `template` words it for a family of models."""
    record = sample.record
    if template is None or (record.question is None and "{question}" in template):
        return record
    hint = f"{sample.hint}\n" if sample.hint and kind == "chat" else f"Context: {sample.hint} " if sample.hint else ""
    values = {"question": record.question or "", "options": options(sample.choices, kind), "hint": hint}
    return replace(record, question=template.format(**values))


def options(choices: Sequence[str], kind: str) -> str:
    """Options as a family of models is shown them.

    >>> options(["an owl", "a cat"], "chat")
    'A. an owl\\nB. a cat'
    >>> options(["an owl", "a cat"], "blip")
    '(a) an owl (b) a cat'
    """
    letters = ascii_uppercase[: len(choices)]
    if kind == "chat":
        return "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return " ".join(f"({letter.lower()}) {choice}" for letter, choice in zip(letters, choices, strict=True))


def candidates(sample: Sample, kind: str, template: str | None) -> tuple[str, ...]:
    """What a model may answer: the letters of options that a chat model was shown, else the options' own words."""
    lettered = kind == "chat" and template is not None and "{options}" in template
    return tuple(ascii_uppercase[: len(sample.choices)]) if lettered else sample.choices


def check_template(template: str) -> str:
    """The user's own prompt; RessaError if it names other fields than {question}, {options} and {hint}."""
    try:
        template.format(**dict.fromkeys(FIELDS, ""))
    except (KeyError, IndexError, ValueError, AttributeError):
        raise RessaError(f"prompt: may hold {{question}}, {{options}} and {{hint}}, not: {template}") from None
    return template
