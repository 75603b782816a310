"""Visual Genome (Krishna et al. 2017): descriptions of regions as captions of the picture, or questions and answers.

    region_descriptions.json   [{"id": 1, "regions": [{"region_id": 1382, "phrase": "the clock is green", ...}]}, ...]
    question_answers.json      [{"id": 1, "qas": [{"qa_id": 986768, "question": "...", "answer": "Green."}]}, ...]

Pictures lie in VG_100K and VG_100K_2, the folders (or zips) that they are published in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ressa.errors import RessaError
from ressa.preparation.items import Item, Said, Skip, number_or_text, objects, text
from ressa.preparation.stream import entries


def vg(source: Path) -> Iterator[Item | Skip]:
    """A picture with all that is said of it. Raises RessaError for what is in neither format."""
    for raw, where in entries(source, "item", "region_descriptions.json or question_answers.json, a list of objects"):
        if "regions" not in raw and "qas" not in raw:
            raise RessaError(f'{where}: field "regions" or "qas" is missing')
        said = _questions(objects(raw, "qas", where), where) if "qas" in raw else []
        said += _phrases(objects(raw, "regions", where), where) if "regions" in raw else []
        number = number_or_text(raw, "id", where)
        places = [f"{folder}{number}.jpg" for folder in ("VG_100K/", "VG_100K_2/", "")]
        yield Item(f"{number}.jpg", ("file", *places), tuple(said), where)


def _questions(raws: list, where: str) -> list[Said]:
    told = []
    for n, raw in enumerate(raws, 1):
        at = f"{where}: question {n}"
        ident = number_or_text(raw, "qa_id", at) if "qa_id" in raw else None
        told.append(Said(text(raw, "answer", at), text(raw, "question", at), ident))
    return told


def _phrases(raws: list, where: str) -> list[Said]:
    told = []
    for n, raw in enumerate(raws, 1):
        at = f"{where}: region {n}"
        ident = number_or_text(raw, "region_id", at) if "region_id" in raw else None
        told.append(Said(text(raw, "phrase", at), id=ident))
    return told
