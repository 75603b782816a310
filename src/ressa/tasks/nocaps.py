"""NoCaps (Agrawal et al. 2019): captions of pictures with things that COCO's do not name. nocaps.org/download"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ressa.data.fields import identifier, need, texts
from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.data.stream import entries
from ressa.data.tables import is_table
from ressa.errors import RessaError
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, find, from_table
from ressa.tasks.metrics.basic import captions_missing

FORM = 'an object with lists of "images" and "annotations"'


def read(source: Source) -> Reading:
    if is_table(source.data):
        return from_table(source, ("annotations_captions",), _row)
    path = find(source, f"nocaps_{source.split}*_captions.json", f"*{source.split}*.json")
    captions: dict[str, list[str]] = {}
    for raw, where in entries(path, "annotations.item", FORM):
        captions.setdefault(identifier(raw, "image_id", where), []).append(need(raw, "caption", str, where))
    pictures, samples = Pictures(source, source.split), []
    for raw, where in entries(path, "images.item", FORM):
        key = identifier(raw, "id", where)
        if key not in captions:
            raise RessaError(f'{where}: field "id" is {key}, which no annotation describes')
        picture = pictures.find(where, need(raw, "file_name", str, where))
        samples.append(_sample(key, tuple(captions[key]), raw.get("domain"), picture))
    return Reading(samples)


def _row(raw: Mapping[str, Any], where: str, picture: Picture) -> Sample:
    key = str(raw.get("image_id", where.rsplit(":", 1)[1]))
    return _sample(key, texts(raw, "annotations_captions", where), raw.get("image_domain"), picture)


def _sample(key: str, captions: tuple[str, ...], domain: Any, picture: Picture) -> Sample:
    kind = str(domain) if domain else None
    return Sample(Record(key, None, captions, captions[0], kind, picture), {"domain": kind} if kind else {})


TASK = Task(
    name="nocaps",
    title="NoCaps",
    files="`nocaps_val_4500_captions.json`, `val/` (or `images/`) with its `file_name`s",
    hub="lmms-lab/NoCaps",
    split="val",
    read=read,
    measure=common.described,
    metrics="CIDEr, BLEU-1 to 4; METEOR, ROUGE-L, SPICE with Java; by domain",
    asks=common.DESCRIBE,
    how=common.CAPTION,
    missing=captions_missing,
)
