"""TextVQA (Singh et al. 2019): questions about what is written in a picture. textvqa.org/dataset"""

from __future__ import annotations

from ressa.data.records import Record
from ressa.tasks import common, tables
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, find, ident, listed, need, texts


def read(source: Source) -> Reading:
    """The model is shown no OCR tokens: it has to read for itself."""
    if tables.is_table(source):
        rows = tables.rows(source, ("question", "answers", "image"))
        return Reading([_sample(raw, where, tables.picture(pictures, where)) for raw, where, pictures in rows])
    path = find(source, f"TextVQA_*_{source.split}.json")
    pictures = Pictures(source, "train_images", "test_images")
    told = listed(path, "data")
    return Reading([_sample(r, w, pictures.find(f"{need(r, 'image_id', str, w)}.jpg", w)) for r, w in told])


def _sample(raw, where, picture) -> Sample:
    question, answers = need(raw, "question", str, where), texts(raw, "answers", where)
    return Sample(Record(ident(raw, "question_id", where), question, answers, image=picture))


TASK = Task(
    name="textvqa",
    title="TextVQA",
    files="`TextVQA_0.5.1_val.json`, `train_images/`",
    hub="lmms-lab/textvqa",
    split="val",
    read=read,
    measure=common.vqa,
    metrics="VQA accuracy",
    asks=common.ANSWER,
    how=common.SHORT,
)
