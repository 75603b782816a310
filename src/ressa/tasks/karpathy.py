"""Captions in the splits of Karpathy & Fei-Fei 2015: COCO's and Flickr30k's; Flickr30k's own token file too.

    dataset_coco.json   {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg",
                                     "split": "test", "sentences": [{"raw": "A man with a red ...", "sentid": 770337,
                                     ...}, ...], ...}, ...]}

dataset_flickr30k.json has the same format, without `filepath`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ressa.data.fields import identifier, need, objects, text, texts
from ressa.data.images import Picture
from ressa.data.items import Annotation, Format, Item
from ressa.data.records import Record
from ressa.data.stream import entries, text_lines
from ressa.data.tables import is_table
from ressa.errors import RessaError, shown
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, find, from_items, picture, rows
from ressa.tasks.metrics.basic import captions_missing

SPLITS = ("train", "restval", "val", "test")
FOLDERS = ("flickr30k-images", "flickr30k_images")


def items(path: Path) -> Iterator[Item]:
    """A picture with its captions, about five. Raises RessaError for what is not in the format above."""
    for raw, where in entries(path, "images.item", 'Karpathy\'s dataset_coco.json: {"images": [...]}'):
        name, split = need(raw, "filename", str, where), need(raw, "split", str, where)
        if split not in SPLITS:
            raise RessaError(f'{where}: field "split" must be one of {", ".join(SPLITS)}, not {shown(split)}')
        captions = tuple(_caption(*sentence) for sentence in objects(raw, "sentences", where))
        places = (f"{text(raw, 'filepath', where)}/{name}", name) if raw.get("filepath") else (name,)
        yield Item(places[0], ("file", *places), captions, where, split)


def _caption(sentence: Mapping[str, Any], where: str) -> Annotation:
    return Annotation(
        text(sentence, "raw", where), id=identifier(sentence, "sentid", where) if "sentid" in sentence else None
    )


def coco(source: Source) -> Reading:
    if is_table(source.data):
        return _from_table(source, "answer")
    return from_items(items, "dataset_coco.json", places=("val2014", "train2014"))(source)


def flickr(source: Source) -> Reading:
    if is_table(source.data):
        return _from_table(source, "caption")
    path = find(source, "dataset_flickr30k.json", "results_20130124.token", "*.token")
    if path.suffix == ".token":
        return Reading(list(_tokens(source, path)))
    return from_items(items, path.name, places=FOLDERS)(source)


def _tokens(source: Source, path: Path) -> Iterator[Sample]:
    """`1000092795.jpg#0<tab>caption` lines. The file knows no splits: {split}.txt beside it lists names, else all."""
    captions: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for line, where in text_lines(path):
        name, tab, caption = line.partition("\t")
        if line.strip() and (not tab or "#" not in name or not caption.strip()):
            raise RessaError(f"{where}: must be NAME.jpg#NUMBER, a tab and a caption, not '{line[:60]}'")
        if line.strip():
            captions.setdefault(name.rpartition("#")[0], []).append(caption.strip())
            first.setdefault(name.rpartition("#")[0], where)
    listed = path.with_name(f"{source.split}.txt")
    names = [f"{name.removesuffix('.jpg')}.jpg" for name, _ in text_lines(listed)] if listed.is_file() else captions
    pictures = Pictures(source, *FOLDERS)
    for name in names:
        if name not in captions:
            raise RessaError(f"{listed}: {name} has no caption in {path}")
        yield _sample(name, tuple(captions[name]), pictures.find(first[name], name))


def _from_table(source: Source, column: str) -> Reading:
    samples = []
    for raw, where in rows(source, ("image", column)):
        if raw.get("split", source.split) == source.split:
            key = str(raw.get("filename") or raw.get("question_id") or where.rsplit(":", 1)[1])
            samples.append(_sample(key, texts(raw, column, where), picture(raw, where)))
    return Reading(samples)


def _sample(key: str, captions: tuple[str, ...], image: Picture) -> Sample:
    return Sample(Record(key, None, captions, captions[0], image=image))


COCO = Task(
    name="coco",
    title="COCO captions (Karpathy)",
    files="`dataset_coco.json`, `val2014/`",
    hub="lmms-lab/COCO-Caption",
    split="test",
    read=coco,
    measure=common.described,
    metrics="CIDEr, BLEU-1 to 4; METEOR, ROUGE-L, SPICE with Java",
    asks=common.DESCRIBE,
    how=common.CAPTION,
    missing=captions_missing,
    format=Format("COCO captions by Karpathy's splits: dataset_coco.json", items, has_splits=True),
)
FLICKR = replace(
    COCO,
    name="flickr30k",
    title="Flickr30k captions",
    files="`dataset_flickr30k.json` (or `results_20130124.token`, with `test.txt`), `flickr30k-images/`",
    hub="lmms-lab/flickr30k",
    read=flickr,
    format=Format("Flickr30k captions by Karpathy's splits: dataset_flickr30k.json", items, has_splits=True),
)
