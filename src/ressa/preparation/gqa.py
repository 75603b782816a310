"""GQA (Hudson and Manning 2019): questions about pictures of Visual Genome.

    train_balanced_questions.json   {"07333408": {"imageId": "2375429", "question": "What is on the white wall?",
                                                  "answer": "pipe", "types": {"structural": "query", ...}, ...}, ...}

A file holds one split, so `--split` says which one it is. The structural type becomes the kind of the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ressa.preparation.items import Item, Said, Skip, number_or_text, text
from ressa.preparation.stream import named_entries


def gqa(source: Path) -> Iterator[Item | Skip]:
    """A picture with one question about it. Raises RessaError for what is not in the format above."""
    for ident, raw, where in named_entries(source, 'GQA\'s *_questions.json: {"number": {"imageId": ...}, ...}'):
        types = raw.get("types")
        kind = types.get("structural") if isinstance(types, Mapping) else None
        kind = kind if isinstance(kind, str) else None
        said = Said(text(raw, "answer", where), text(raw, "question", where), ident, kind)
        name = f"{number_or_text(raw, 'imageId', where)}.jpg"
        yield Item(name, ("file", f"images/{name}", name), (said,), where)
