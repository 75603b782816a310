"""ScienceQA (Lu et al. 2022), the questions with a picture. scienceqa.github.io"""

from __future__ import annotations

from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.tasks import common, tables
from ressa.tasks.base import Reading, Sample, Source, Task
from ressa.tasks.files import Pictures, beside, folder, ident, named, need, read_json, texts

NO_PICTURE = "no picture (ScienceQA-IMG asks about pictures)"


def read(source: Source) -> Reading:
    if tables.is_table(source):
        rows = list(tables.rows(source, ("question", "choices", "answer", "image")))
        samples = [_sample(w.rsplit(":", 1)[1], raw, w, p["image"]) for raw, w, p in rows if "image" in p]
        return _reading(samples, len(rows))
    problems = {name: (raw, where) for name, raw, where in named(beside(source, "problems.json"))}
    path = beside(source, "pid_splits.json")
    splits = read_json(path)
    if not isinstance(splits, dict) or not isinstance(splits.get(source.split), list):
        raise RessaError(f'{path}: field "{source.split}" must be a list of problem numbers')
    pictures, samples = Pictures(source, source.split), []
    for i, number in enumerate(splits[source.split]):
        if str(number) not in problems:
            raise RessaError(f"{path}: {source.split}[{i}] is {number}, which {folder(source)}/problems.json has not")
        raw, where = problems[str(number)]
        if raw.get("image"):
            picture = pictures.find(f"{number}/{need(raw, 'image', str, where)}", where)
            samples.append(_sample(str(number), raw, where, picture))
    return _reading(samples, len(splits[source.split]))


def _reading(samples: list[Sample], asked: int) -> Reading:
    return Reading(samples, {NO_PICTURE: asked - len(samples)} if asked > len(samples) else {})


def _sample(key, raw, where, picture) -> Sample:
    choices, right = texts(raw, "choices", where), raw.get("answer")
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise RessaError(f'{where}: field "answer" must be the index of one of {len(choices)} choices, not {right}')
    kinds = {name: str(raw[name]) for name in ("subject", "grade") if raw.get(name)}
    ident({"id": key}, "id", where)
    record = Record(key, need(raw, "question", str, where), (choices[right],), kind=kinds.get("subject"), image=picture)
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
    how=common.SHORT,
    mode="choice",
)
