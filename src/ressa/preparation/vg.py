"""Visual Genome (Krishna et al. 2017): descriptions of regions as captions of the picture, or questions and answers.

    region_descriptions.json   [{"id": 1, "regions": [{"region_id": 1382, "phrase": "the clock is green", ...}]}, ...]
    question_answers.json      [{"id": 1, "qas": [{"qa_id": 986768, "question": "...", "answer": "Green."}]}, ...]

Pictures lie in VG_100K and VG_100K_2, the folders (or zips) that they are published in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ressa.data.fields import identifier, objects, text
from ressa.data.items import Annotation, Item
from ressa.data.stream import entries
from ressa.errors import RessaError


def vg(source: Path) -> Iterator[Item]:
    """A picture with all its annotations. Raises RessaError for what is in neither format."""
    for raw, where in entries(source, "item", "region_descriptions.json or question_answers.json, a list of objects"):
        if "regions" not in raw and "qas" not in raw:
            raise RessaError(f'{where}: field "regions" or "qas" is missing')
        annotations = [_question(*qa) for qa in objects(raw, "qas", where)] if "qas" in raw else []
        annotations += [_phrase(*region) for region in objects(raw, "regions", where)] if "regions" in raw else []
        number = identifier(raw, "id", where)
        places = [f"{folder}{number}.jpg" for folder in ("VG_100K/", "VG_100K_2/", "")]
        yield Item(f"{number}.jpg", ("file", *places), tuple(annotations), where)


def _question(raw: Mapping[str, Any], where: str) -> Annotation:
    ident = identifier(raw, "qa_id", where) if "qa_id" in raw else None
    return Annotation(text(raw, "answer", where), text(raw, "question", where), ident)


def _phrase(raw: Mapping[str, Any], where: str) -> Annotation:
    ident = identifier(raw, "region_id", where) if "region_id" in raw else None
    return Annotation(text(raw, "phrase", where), id=ident)
