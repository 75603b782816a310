"""Captions in the splits of Karpathy & Fei-Fei 2015: dataset_coco.json, dataset_flickr30k.json; Flickr30k's tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.tasks import common, tables
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, an_object, find, listed, need, text_lines, texts
from ressa.tasks.metrics.basic import captions_missing


def coco(source: Source) -> Reading:
    if tables.is_table(source):
        return _from_table(source, "answer")
    return Reading(
        [_sample(*told) for told in _split(source, find(source, "dataset_coco.json"), "val2014", "train2014")]
    )


def flickr(source: Source) -> Reading:
    if tables.is_table(source):
        return _from_table(source, "caption")
    path = find(source, "dataset_flickr30k.json", "results_20130124.token", "*.token")
    if path.suffix == ".token":
        return Reading([_sample(*told) for told in _tokens(source, path)])
    return Reading([_sample(*told) for told in _split(source, path, "flickr30k-images", "flickr30k_images")])


def _split(source: Source, path: Path, *places: str) -> Iterable[tuple[str, tuple[str, ...], Picture]]:
    pictures, splits = Pictures(source, *places), set()
    for raw, where in listed(path, "images"):
        splits.add(split := need(raw, "split", str, where))
        if split != source.split:
            continue
        name, folder = need(raw, "filename", str, where), raw.get("filepath")
        sentences = need(raw, "sentences", list, where)
        objects = [an_object(s, f"{where}: sentences[{i}]") for i, s in enumerate(sentences)]
        captions = tuple(need(s, "raw", str, f"{where}: sentences[{i}]") for i, s in enumerate(objects))
        yield name, captions, pictures.find(f"{folder}/{name}" if folder else name, where)
    if source.split not in splits:
        raise RessaError(f"{path}: no image of the split {source.split} (splits there: {', '.join(sorted(splits))})")


def _tokens(source: Source, path: Path) -> Iterable[tuple[str, tuple[str, ...], Picture]]:
    """`1000092795.jpg#0<tab>caption` lines. The file knows no splits: {split}.txt beside it lists names, else all."""
    captions: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for number, line in enumerate(text_lines(path), 1):
        name, tab, caption = line.partition("\t")
        if line.strip() and (not tab or "#" not in name or not caption.strip()):
            raise RessaError(f"{path}:{number}: must be NAME.jpg#NUMBER, a tab and a caption, not '{line[:60]}'")
        if line.strip():
            captions.setdefault(name.rpartition("#")[0], []).append(caption.strip())
            first.setdefault(name.rpartition("#")[0], f"{path}:{number}")
    chosen = path.with_name(f"{source.split}.txt")
    wanted = [n if n.endswith(".jpg") else f"{n}.jpg" for n in text_lines(chosen)] if chosen.is_file() else captions
    pictures = Pictures(source, "flickr30k-images", "flickr30k_images")
    for name in wanted:
        if name not in captions:
            raise RessaError(f"{chosen}: {name} has no caption in {path}")
        yield name, tuple(captions[name]), pictures.find(name, first[name])


def _from_table(source: Source, column: str) -> Reading:
    samples = []
    for raw, where, pictures in tables.rows(source, ("image", column)):
        if raw.get("split", source.split) == source.split:
            key = str(raw.get("filename") or raw.get("question_id") or where.rsplit(":", 1)[1])
            samples.append(_sample(key, texts(raw, column, where), tables.picture(pictures, where)))
    return Reading(samples)


def _sample(key: str, captions: tuple[str, ...], picture: Picture) -> Sample:
    return Sample(Record(key, None, captions, captions[0], image=picture))


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
)
FLICKR = Task(
    name="flickr30k",
    title="Flickr30k captions",
    files="`dataset_flickr30k.json` (or `results_20130124.token`, with `test.txt`), `flickr30k-images/`",
    hub="lmms-lab/flickr30k",
    split="test",
    read=flickr,
    measure=common.described,
    metrics="CIDEr, BLEU-1 to 4; METEOR, ROUGE-L, SPICE with Java",
    asks=common.DESCRIBE,
    how=common.CAPTION,
    missing=captions_missing,
)
