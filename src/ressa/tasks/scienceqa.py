"""ScienceQA (Lu et al. 2022), the questions with a picture. scienceqa.github.io"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ressa.data.fields import need, texts
from ressa.data.images import Picture
from ressa.data.records import Record
from ressa.data.stream import named_entries
from ressa.data.tables import is_table
from ressa.errors import RessaError
from ressa.tasks import common
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, beside, folder, picture, read_object, rows

FORM = 'ScienceQA\'s problems.json: {"number": {"question": ...}, ...}'
NO_PICTURE = "no picture (ScienceQA-IMG asks about pictures)"


def read(source: Source) -> Reading:
    if is_table(source.data):
        found = list(rows(source, ("question", "choices", "answer", "image")))
        shown = [(raw, where) for raw, where in found if raw["image"] is not None]
        return _reading([_sample(w.rsplit(":", 1)[1], raw, w, picture(raw, w)) for raw, w in shown], len(found))
    problems = {name: (raw, where) for name, raw, where in named_entries(beside(source, "problems.json"), FORM)}
    path = beside(source, "pid_splits.json")
    numbers = need(read_object(path), source.split, list, str(path), blank=True)
    pictures, samples = Pictures(source, source.split), []
    for i, number in enumerate(map(str, numbers)):
        if number not in problems:
            raise RessaError(f"{path}: {source.split}[{i}] is {number}, which {folder(source)}/problems.json has not")
        raw, where = problems[number]
        if raw.get("image"):
            image = pictures.find(where, f"{number}/{need(raw, 'image', str, where)}")
            samples.append(_sample(number, raw, where, image))
    return _reading(samples, len(numbers))


def _reading(samples: list[Sample], asked: int) -> Reading:
    return Reading(samples, {NO_PICTURE: asked - len(samples)} if asked > len(samples) else {})


def _sample(key: str, raw: Mapping[str, Any], where: str, image: Picture) -> Sample:
    choices, right = texts(raw, "choices", where), raw.get("answer")
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise RessaError(f'{where}: field "answer" must be the index of one of {len(choices)} choices, not {right}')
    kinds = {name: str(raw[name]) for name in ("subject", "grade") if raw.get(name)}
    record = Record(key, need(raw, "question", str, where), (choices[right],), kind=kinds.get("subject"), image=image)
    return Sample(record, kinds, choices, right, hint=str(raw.get("hint") or "").strip())


TASK = Task(
    name="scienceqa",
    title="ScienceQA-IMG",
    files="`problems.json`, `pid_splits.json`, `test/NUMBER/image.png`",
    hub="derek-thomas/ScienceQA",
    split="test",
    read=read,
    measure=common.chosen,
    metrics="accuracy, by subject and grade",
    asks=common.CHOOSE,
    mode="choice",
)
