"""TextVQA (Singh et al. 2019): questions about what is written in a picture. textvqa.org/dataset"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ressa.data.fields import identifier, need, texts
from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.data.stream import entries
from ressa.data.tables import is_table
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, find, from_table


def read(source: Source) -> Reading:
    """The model is shown no OCR tokens: it has to read for itself."""
    if is_table(source.data):
        return from_table(source, ("question", "answers"), _sample)
    path = find(source, f"TextVQA_*_{source.split}.json")
    pictures = Pictures(source, "train_images", "test_images")
    rows = entries(path, "data.item", 'an object with a list of "data"')
    return Reading([_sample(r, w, pictures.find(w, f"{need(r, 'image_id', str, w)}.jpg")) for r, w in rows])


def _sample(raw: Mapping[str, Any], where: str, picture: Picture) -> Sample:
    question, answers = need(raw, "question", str, where), texts(raw, "answers", where)
    return Sample(Record(identifier(raw, "question_id", where), question, answers, image=picture))


TASK = Task(
    name="textvqa",
    title="TextVQA",
    files="`TextVQA_0.5.1_val.json`, `train_images/`",
    hub="lmms-lab/textvqa",
    split="val",
    read=read,
    measure=common.vqa,
    metrics="VQA accuracy",
)
