"""NoCaps (Agrawal et al. 2019): captions of pictures with things that COCO's do not name. nocaps.org/download"""

from __future__ import annotations

from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.tasks import common, tables
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, find, ident, listed, need, texts
from ressa.tasks.metrics.basic import captions_missing


def read(source: Source) -> Reading:
    if tables.is_table(source):
        return _from_table(source)
    path = find(source, f"nocaps_{source.split}*_captions.json", f"*{source.split}*.json")
    captions: dict[str, list[str]] = {}
    for raw, where in listed(path, "annotations"):
        captions.setdefault(ident(raw, "image_id", where), []).append(need(raw, "caption", str, where))
    pictures, samples = Pictures(source, source.split), []
    for raw, where in listed(path, "images"):
        key = ident(raw, "id", where)
        if key not in captions:
            raise RessaError(f'{where}: field "id" is {key}, which no annotation describes')
        picture = pictures.find(need(raw, "file_name", str, where), where)
        samples.append(_sample(key, tuple(captions[key]), raw.get("domain"), picture))
    return Reading(samples)


def _from_table(source: Source) -> Reading:
    samples = []
    for raw, where, pictures in tables.rows(source, ("image", "annotations_captions")):
        key = str(raw.get("image_id", where.rsplit(":", 1)[1]))
        captions = texts(raw, "annotations_captions", where)
        samples.append(_sample(key, captions, raw.get("image_domain"), tables.picture(pictures, where)))
    return Reading(samples)


def _sample(key, captions, domain, picture) -> Sample:
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
