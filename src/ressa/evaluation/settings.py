"""The settings of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

from ressa.settings import check, setting
from ressa.tasks import TASKS


@dataclass(frozen=True)
class Evaluate:
    """What is asked of a model."""

    task: str = setting(
        "folder",
        f"What is asked: folder (your own records) or a benchmark: {', '.join(list(TASKS)[1:])}.",
    )
    split: str | None = setting(None, "Which records are asked. [test, or the task's own]")
    images: str | None = setting(None, "Where the task's pictures lie. [in its data folder]")
    limit: int | None = setting(None, "Ask only this many, drawn at random, the same each time. [all]")
    batch_size: int = setting(32, "Questions answered together.")
    prompt: str | None = setting(
        None, "How a question is put, with {question}, {options} and {hint} in it. [as the task's page says]"
    )
    choices: str | None = setting(
        None,
        "Multiple choice by the likelihood of each option, or by generation of an answer that is read. [likelihood for "
        "BLIP, generation for chat models]",
        among=("likelihood", "generation"),
    )
    max_new_tokens: int | None = setting(None, "Where an answer is cut off. [32, or the task's own]")
    min_new_tokens: int | None = setting(None, "The least tokens of an answer. [the task's own]")
    num_beams: int | None = setting(None, "Beams in generation; 1 is greedy. [1, or the task's own]")
    length_penalty: float | None = setting(None, "Of beams: below 0 for short answers. [the task's own]")
    grey: bool = setting(False, "Show grey pictures: what can be guessed without looking?")
    perplexity: bool = setting(False, "Of the reference answers too; with --against always.")

    def __post_init__(self) -> None:
        check(self, "evaluate", rules="ressa.evaluation.overrides")
