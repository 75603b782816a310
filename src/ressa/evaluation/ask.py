"""A task is put to a model: each family in its own words, by generation, by likelihood, or by ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

from ressa.answering.generate import answers
from ressa.calibration.rehearsal import check_room
from ressa.data.lengths import with_longest
from ressa.data.prompts import prompt_text
from ressa.data.records import Record
from ressa.data.seeing import how_seen
from ressa.errors import RessaError
from ressa.evaluation import matching, retrieve
from ressa.evaluation.choose import SETTINGS, choices
from ressa.evaluation.overrides import contradiction, generation, refuse_generation
from ressa.evaluation.settings import Evaluate
from ressa.settings import Progress
from ressa.tasks.base import ANSWER, Generation, Sample, Task, asked, candidates, family
from ressa.tasks.retrieval import queries


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
    settings: Evaluate,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Asked:
    """All samples, asked of a model."""
    kind = family(processor, net.config)
    shown = "blip" if kind == "vicuna" else kind
    templates = [_template(task, sample, shown, settings.prompt) for sample in samples]
    records = [asked(s, template, shown) for s, template in zip(samples, templates, strict=True)]
    check_room(net, processor, records, new_tokens=1)
    # a head that matches pictures with captions reads no prompt: its own code hands it the pixels
    seen = "pixels" if task.mode == "retrieval" and matching.fits(net) else how_seen(net, processor, records)
    prompt, size = prompt_text(processor, records[0]), settings.batch_size
    if task.mode == "retrieval":
        ranks = [str(rank) for rank in retrieve.ranks(net, processor, records, cache, size, progress)]
        found = queries(samples)
        return Asked(found, [s.record for s in found], ranks, retrieve.settings_of(net), prompt, seen)
    how, ranked = _way(task, samples, settings, kind)
    answered, used = dict[str, str](), dict[str, Any]()
    if any(ranked):
        options = [candidates(s, shown, t) for s, t, by in zip(samples, templates, ranked, strict=True) if by]
        mine = list(compress(records, ranked))
        check_room(net, processor, with_longest(mine, options))
        answered |= choices(net, processor, mine, options, cache, size, progress)
        used |= SETTINGS
    if not all(ranked):
        mine = [record for record, by in zip(records, ranked, strict=True) if not by]
        check_room(net, processor, mine, how.max_new_tokens)
        answered |= answers(net, processor, mine, cache, size, how, progress)
        used |= how.settings()
    return Asked(list(samples), records, [answered[r.id] for r in records], used, prompt, seen)


def _way(task: Task, samples: Sequence[Sample], settings: Evaluate, kind: str) -> tuple[Generation, list[bool]]:
    """How answers are generated, and for each sample whether its choices are ranked by likelihood instead.

    Raises:
        RessaError: a setting that would have no effect.
    """
    how = generation(settings, task, kind)
    if why := contradiction(settings, how):
        raise RessaError(why)
    way = settings.choices or ("generation" if kind == "chat" else "likelihood")
    ranked = [bool(sample.choices) and way == "likelihood" for sample in samples]
    if all(ranked):
        refuse_generation(settings, f"{task.name} chooses")
    return how, ranked


def _template(task: Task, sample: Sample, kind: str, own: str | None) -> str | None:
    if own is not None:
        return own
    return ANSWER[kind] if task.mode == "choice" and not sample.choices else task.asks[kind]
