"""A task is put to a model: each family in its own words, by generation, by likelihood, or by ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from ressa.evaluation.generate import answers
from ressa.evaluation.overrides import contradiction, generation, refuse_generation
from ressa.evaluation.settings import Evaluate
from ressa.tasks.base import ANSWER, Sample, Task, asked, candidates, family
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
    records = [asked(s, _template(task, s, shown, settings.prompt), shown) for s in samples]
    check_room(net, processor, records, new_tokens=1)
    # a head that matches pictures with captions reads no prompt: its own code hands it the pixels
    seen = "pixels" if task.mode == "retrieval" and matching.fits(net) else how_seen(net, processor, records)
    if task.mode == "retrieval":
        ranks = retrieve.ranks(net, processor, records, cache, settings.batch_size, progress)
        found = queries(samples)
        told = retrieve.settings_of(net)
        return Asked(
            found, [s.record for s in found], [str(rank) for rank in ranks], told, _prompt(processor, records), seen
        )
    how = generation(settings, task, kind)
    if why := contradiction(settings, how):
        raise RessaError(why)
    said: dict[str, str] = {}
    way = settings.choices or ("generation" if shown == "chat" else "likelihood")
    ranked = [i for i, s in enumerate(samples) if s.choices and way == "likelihood"]
    written = sorted(set(range(len(samples))) - set(ranked))
    if not written:
        refuse_generation(settings, f"{task.name} chooses")
    if ranked:
        options = [candidates(samples[i], shown, _template(task, samples[i], shown, settings.prompt)) for i in ranked]
        mine = [records[i] for i in ranked]
        check_room(net, processor, with_longest(mine, options))
        said |= choices(net, processor, mine, options, cache, settings.batch_size, progress)
    if written:
        mine = [records[i] for i in written]
        check_room(net, processor, mine, how.max_new_tokens)
        said |= answers(net, processor, mine, cache, settings.batch_size, how, progress)
    told = (SETTINGS if ranked else {}) | (how.settings() if written else {})
    return Asked(list(samples), records, [said[r.id] for r in records], told, _prompt(processor, records), seen)


def _template(task: Task, sample: Sample, kind: str, own: str | None) -> str | None:
    if own is not None:
        return own
    return ANSWER[kind] if task.mode == "choice" and not sample.choices else task.asks[kind]


def _prompt(processor: Any, records: Sequence[Record]) -> str:
    return prompt_text(processor, records[0])
