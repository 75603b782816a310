"""OK-VQA (Marino et al. 2019): questions that need knowledge besides the COCO picture. okvqa.allenai.org

LAVIS lemmatises answers here with spaCy before it compares them; ressa does not, so its scores are somewhat lower.
"""

from __future__ import annotations

from dataclasses import replace

from ressa.data.tables import is_table
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import beside, from_table, read_object
from ressa.tasks.vqav2 import joined, row


def read(source: Source) -> Reading:
    if is_table(source.data):
        return from_table(source, ("question", "answers"), row)
    annotations = f"mscoco_{source.split}*_annotations.json"
    reading = joined(source, f"OpenEnded_mscoco_{source.split}*_questions.json", annotations)
    types = read_object(beside(source, annotations)).get("question_types")
    names = types if isinstance(types, dict) else {}
    return Reading([_named(sample, names) for sample in reading.samples])


def _named(sample: Sample, names: dict[str, str]) -> Sample:
    """Kinds of knowledge by their names; the file has their numbers ("one") in each annotation."""
    kind = sample.kinds.get("question type", "")
    name = names.get(kind, kind) or "other"
    return replace(sample, record=replace(sample.record, kind=name), kinds={"question type": name})


TASK = Task(
    name="okvqa",
    title="OK-VQA",
    files="`OpenEnded_mscoco_val2014_questions.json`, `mscoco_val2014_annotations.json`, `val2014/`",
    hub="lmms-lab/OK-VQA",
    split="val",
    read=read,
    measure=common.vqa,
    metrics="VQA accuracy (without LAVIS's lemmatiser), by kind of knowledge",
)
