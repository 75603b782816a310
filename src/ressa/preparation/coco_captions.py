"""COCO captions with Karpathy's splits (Karpathy and Fei-Fei 2015): dataset_coco.json and the pictures of COCO 2014.

    {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "split": "test", "cocoid": 391895,
                 "sentences": [{"raw": "A man with a red helmet ...", "sentid": 770337, ...}, ...], ...}, ...]}

Pictures that Karpathy calls restval are trained on, as everyone does. dataset_flickr30k.json has the same format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ressa.data.images import shown
from ressa.errors import RessaError
from ressa.preparation.items import Item, Said, Skip, number_or_text, objects, text
from ressa.preparation.stream import entries

SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def coco_captions(source: Path) -> Iterator[Item | Skip]:
    """A picture with its captions, about five. Raises RessaError for what is not in the format above."""
    for raw, where in entries(source, "images.item", 'Karpathy\'s dataset_coco.json: {"images": [...]}'):
        name, split = text(raw, "filename", where), text(raw, "split", where)
        if split not in SPLITS:
            raise RessaError(f'{where}: field "split" must be one of {", ".join(SPLITS)}, not {shown(split)}')
        said = []
        for n, sentence in enumerate(objects(raw, "sentences", where), 1):
            at = f"{where}: sentence {n}"
            ident = number_or_text(sentence, "sentid", at) if "sentid" in sentence else None
            said.append(Said(text(sentence, "raw", at), id=ident))
        folder = text(raw, "filepath", where) if "filepath" in raw else ""  # Flickr30k has none
        places = (f"{folder}/{name}", name) if folder else (name,)
        yield Item(places[0], ("file", *places), tuple(said), where, SPLITS[split])
