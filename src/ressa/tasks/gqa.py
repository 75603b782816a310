"""GQA (Hudson & Manning 2019): compositional questions about real pictures. cs.stanford.edu/people/dorarad/gqa

    testdev_balanced_questions.json   {"07333408": {"imageId": "2375429", "question": "What is on the white wall?",
                                                    "answer": "pipe", "types": {"structural": "query", ...}, ...}, ...}

A file holds one split. The structural type becomes the kind of the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ressa.data.fields import identifier, text
from ressa.data.items import Annotation, Format, Item
from ressa.data.stream import named_entries
from ressa.tasks import common
from ressa.tasks.base import Task
from ressa.tasks.files import from_items


def items(path: Path) -> Iterator[Item]:
    """A picture with one question about it. Raises RessaError for what is not in the format above."""
    for number, raw, where in named_entries(path, 'GQA\'s *_questions.json: {"number": {"imageId": ...}, ...}'):
        types = raw["types"] if isinstance(raw.get("types"), Mapping) else {}
        kinds = {f"{name} type": str(types[name]) for name in ("structural", "semantic") if types.get(name)}
        answer = Annotation(text(raw, "answer", where), text(raw, "question", where), number, kinds)
        name = f"{identifier(raw, 'imageId', where)}.jpg"
        yield Item(name, ("file", f"images/{name}", name), (answer,), where)


TASK = Task(
    name="gqa",
    title="GQA",
    files="`testdev_balanced_questions.json`, `images/`",
    split="testdev_balanced",
    read=from_items(items, "{split}_questions.json", "{split}*questions*.json"),
    measure=common.matches,
    metrics="exact match after VQA's normalisation, by structural and semantic type",
    format=Format("GQA: one of its *_questions.json", items),
)
