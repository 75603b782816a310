"""Pictures with their question, what is right, and what each model answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.reporting.page.collect import Model, Report
from ressa.reporting.page.made import Scores

CARDS, SHOWN = 48, 8  # questions on the page; models that a card has room for
SIDE = 208  # pixels of a picture's longer side
TAGS = ("mended", "broke", "differ")


@dataclass(frozen=True)
class Card:
    """One question. `tags` are those of `TAGS` that hold; an answer is (model, text, right or None)."""

    id: str
    kind: str
    question: str
    references: list[str]
    answers: list[tuple[str, str, bool | None]]
    tags: tuple[str, ...]
    picture: str = ""


@dataclass(frozen=True)
class Gallery:
    """The cards that are shown; `all` and `counts` tell of how many, overall and of each tag."""

    cards: list[Card]
    all: int
    counts: dict[str, int]
    models: int


def gallery(report: Report, room: int, limit: int = CARDS) -> Gallery:
    """At most `limit` questions, a share of each kind of change; `room` is what their pictures may take, in bytes.

    A picture that cannot be read is left out and noted in `report.notes`.
    """
    models = [model for model in report.asked_alike() if model.answers]
    if not models:
        return Gallery([], 0, dict.fromkeys(TAGS, 0), 0)
    cards = [_card(ident, models, report) for ident in models[0].answers]
    counts = {tag: sum(tag in card.tags for card in cards) for tag in TAGS}
    chosen = _choose(cards, limit)
    return Gallery(list(_pictured(chosen, models[0], report, room)), len(cards), counts, len(models))


def _card(ident: str, models: list[Model], report: Report) -> Card:
    asked = models[0].answers[ident]
    rows = [(model, model.answers[ident]) for model in models if ident in model.answers]
    answers = [(model.name, row["answer"], _right(row, model.scores)) for model, row in rows]
    texts = {" ".join(text.casefold().split()) for _, text, _ in answers}
    tags = {_change(model, row, ident, report) for model, row in rows} | ({"differ"} if len(texts) > 1 else set())
    kept = tuple(tag for tag in TAGS if tag in tags)
    return Card(ident, asked["kind"], asked["question"], asked["references"], answers[:SHOWN], kept)


def _right(row: dict[str, Any], scores: Scores | None) -> bool | None:
    """Whether an answer counts as right: most of what its metric gives; None for one that no answer has alone."""
    value = row.get(scores.metric) if scores else None
    return None if value is None else value > 0.5


def _change(model: Model, row: dict[str, Any], ident: str, report: Report) -> str:
    """What repair did to an answer: `mended` or `broke` it, or neither."""
    pruned = report.pruned(model)
    before = pruned.answers.get(ident) if pruned else None
    was, now = _right(before, model.scores) if before else None, _right(row, model.scores)
    return "" if was is None or was == now else "mended" if now else "broke"


def _choose(cards: list[Card], limit: int) -> list[Card]:
    """A quarter of each tag, where there are so many, the rest spread over all; in the order of the questions."""
    chosen: dict[str, Card] = {}
    for tag in TAGS:
        chosen |= {card.id: card for card in _spread([c for c in cards if tag in c.tags], limit // 4)}
    rest = [card for card in cards if card.id not in chosen]
    chosen |= {card.id: card for card in _spread(rest, limit - len(chosen))}
    return [card for card in cards if card.id in chosen]


def _spread(cards: list[Card], n: int) -> list[Card]:
    """At most `n` of them, at equal distances."""
    return [cards[i * len(cards) // n] for i in range(n)] if len(cards) > n else cards


def _pictured(cards: list[Card], model: Model, report: Report, room: int) -> Iterator[Card]:
    records, left = _records(model, report), room
    for card in cards:
        record = records.get(card.id)
        try:
            picture = _encoded(record) if record and record.image else ""
        except RessaError as error:
            report.notes.append(str(error))
            picture = ""
        picture = picture if len(picture) < left else ""
        left -= len(picture)
        yield replace(card, picture=picture)


def _records(model: Model, report: Report) -> dict[str, Record]:
    """The records that were asked, where their folder is still there; else {} and a note."""
    scores = model.scores
    if scores is None or scores.task != "folder":
        report.notes.append("Pictures are shown of questions of one's own (task: folder), not of a benchmark's files.")
        return {}
    places = [Path(scores.data), Path(model.run) / "data", Path(model.run).parent / Path(scores.data).name]
    place = next((place for place in places if scores.data and place.exists()), None)
    if place is None:
        report.notes.append(f"{scores.data}: not here any more, so the questions are shown without their pictures.")
        return {}
    try:
        return {record.id: record for record in read_records(place, scores.split or "test")}
    except RessaError as error:
        report.notes.append(f"No pictures are shown: {error}")
        return {}


def _encoded(record: Record) -> str:
    """A small JPEG as a data: address."""
    picture = record.open_image()
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=78, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
