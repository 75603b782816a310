"""A task is put to a model: each family in its own words, by generation, by likelihood, or by ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ressa.calibration.rehearsal import check_room
from ressa.data.lengths import with_longest
from ressa.data.prompts import prompt_text
from ressa.data.records import Record
from ressa.data.seeing import how_seen
from ressa.errors import RessaError
from ressa.evaluation import matching, retrieve
from ressa.evaluation.cache import Progress
from ressa.evaluation.choose import SETTINGS, choices
from ressa.evaluation.generate import Generation, answers
from ressa.tasks.base import Sample, Task, asked, candidates, check_template, family
from ressa.tasks.common import ANSWER
from ressa.tasks.retrieval import queries

WRITTEN = ("max_new_tokens", "num_beams", "min_new_tokens", "length_penalty")  # settings of generation


@dataclass(frozen=True)
class Wishes:
    """What the user wants otherwise than the task has it; None leaves it to the task."""

    prompt: str | None = None
    choices: str | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    batch_size: int = 32

    def check(self, task: Task) -> None:
        """RessaError for what no model could be asked."""
        if self.prompt is not None:
            check_template(self.prompt)
        if task.mode == "retrieval":
            self.refuse_generation(f"{task.name} ranks")
        if self.choices is not None and task.mode != "choice":
            raise RessaError(f"choices: {task.name} is no multiple choice")
        why = [self.contradiction(self.how(task, kind)) for kind in task.how]
        if all(why):
            raise RessaError(why[0])

    def how(self, task: Task, kind: str) -> Generation:
        """The task's way to generate for a family of models, with what the user wants otherwise."""
        return replace(task.how[kind], **{n: getattr(self, n) for n in WRITTEN if getattr(self, n) is not None})

    def contradiction(self, how: Generation) -> str:
        """Why what the user wants would have no effect on this way to generate; "" if it has."""
        if self.length_penalty is not None and how.num_beams == 1:
            return "length_penalty: weighs beams against one another: add num_beams, or leave it out"
        if self.min_new_tokens is not None and self.min_new_tokens > how.max_new_tokens:
            return f"min_new_tokens: {self.min_new_tokens} is more than max_new_tokens, {how.max_new_tokens}"
        return ""

    def refuse_generation(self, what: str) -> None:
        """RessaError for a setting of generation where nothing is generated."""
        for name in WRITTEN:
            if getattr(self, name) is not None:
                raise RessaError(f"{name}: {what} by likelihood and writes no answer: leave it out")


@dataclass(frozen=True)
class Asked:
    """The samples that are scored (of retrieval: its queries), the records that the model was given, its answers."""

    samples: list[Sample]
    records: list[Record]
    answers: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    seen: str | None = None  # how the model sees the pictures, as `data.seeing` tells


def ask(
    net: Any,
    processor: Any,
    task: Task,
    samples: Sequence[Sample],
    wishes: Wishes,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Asked:
    """All samples, asked of a model."""
    kind = family(processor, net.config)
    shown = "blip" if kind == "vicuna" else kind
    records = [asked(s, _template(task, s, shown, wishes.prompt), shown) for s in samples]
    check_room(net, processor, records, new_tokens=1)
    # a head that matches pictures with captions reads no prompt: its own code hands it the pixels
    seen = "pixels" if task.mode == "retrieval" and matching.fits(net) else how_seen(net, processor, records)
    if task.mode == "retrieval":
        ranks = retrieve.ranks(net, processor, records, cache, wishes.batch_size, progress)
        found = queries(samples)
        told = retrieve.settings_of(net)
        return Asked(
            found, [s.record for s in found], [str(rank) for rank in ranks], told, _prompt(processor, records), seen
        )
    how = wishes.how(task, kind)
    if why := wishes.contradiction(how):
        raise RessaError(why)
    said: dict[str, str] = {}
    way = wishes.choices or ("generation" if shown == "chat" else "likelihood")
    ranked = [i for i, s in enumerate(samples) if s.choices and way == "likelihood"]
    written = sorted(set(range(len(samples))) - set(ranked))
    if not written:
        wishes.refuse_generation(f"{task.name} chooses")
    if ranked:
        options = [candidates(samples[i], shown, _template(task, samples[i], shown, wishes.prompt)) for i in ranked]
        mine = [records[i] for i in ranked]
        check_room(net, processor, with_longest(mine, options))
        said |= choices(net, processor, mine, options, cache, wishes.batch_size, progress)
    if written:
        mine = [records[i] for i in written]
        check_room(net, processor, mine, how.max_new_tokens)
        said |= answers(net, processor, mine, cache, wishes.batch_size, how, progress)
    told = (SETTINGS if ranked else {}) | (how.settings() if written else {})
    return Asked(list(samples), records, [said[r.id] for r in records], told, _prompt(processor, records), seen)


def _template(task: Task, sample: Sample, kind: str, own: str | None) -> str | None:
    if own is not None:
        return own
    return ANSWER[kind] if task.mode == "choice" and not sample.choices else task.asks[kind]


def _prompt(processor: Any, records: Sequence[Record]) -> str:
    return prompt_text(processor, records[0])
