"""Records: a picture, what is asked of it and what is right. Read from JSONL, a saved `datasets` folder or a Dataset.

A record in a JSONL file is one of

    {"image": "images/1.png", "question": "What is it?", "answer": "an owl"}      or "answers": ["an owl", "owl", ...]
    {"image": "images/1.png", "caption": "an owl in a tree"}
    {"image": "images/1.png", "prefix": "an owl", "caption": "in a tree"}
    {"image": "images/1.png", "messages": [{"role": "user", ...}, {"role": "assistant", ...}]}
    {"text": "Owls are birds."}

`id` and `kind` are optional; other fields are ignored. Pictures are paths below the folder of the JSONL file; they are
looked up when the records are read and opened only by `Record.open_image`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ressa.data.images import ImageFolder, Picture, shown
from ressa.errors import RessaError

Find = Callable[[object, str], Picture]  # (what the image field holds, where) -> the picture


@dataclass(frozen=True)
class Record:
    """One thing to ask of a model. A `{"text": ...}` record has no question and its text as the only answer.

    `prefix` is how the caption begins: the model reads it, and `caption` is how it goes on.
    """

    id: str
    question: str | None
    answers: tuple[str, ...]
    caption: str | None = None
    kind: str | None = None
    image: Picture | None = None
    prefix: str | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """Everything that counts as right: the answers, or the caption."""
        return self.answers or ((self.caption,) if self.caption else ())

    @property
    def target(self) -> str:
        """The one text to teach: the answer most people gave (the first of equals), or the caption."""
        return Counter(self.references).most_common(1)[0][0]

    def open_image(self) -> Image.Image:
        """The picture in RGB. Raises RessaError naming file and record if there is none or it cannot be read."""
        if self.image is None:
            raise RessaError(f"record {shown(self.id)} has no image")
        return self.image.open()


def read_records(source: str | Path | Any, split: str = "train") -> list[Record]:
    """All records of a split, in their order; `id` is the record's own (made unique), else "train-7" for line 7.

    Args:
        source: a folder with {split}.jsonl or with shards {split}-00000-of-00003.parquet, one .jsonl file (`split` is
            then only a name), a folder written by `datasets` (`save_to_disk`), a `datasets.Dataset`, or a
            `datasets.DatasetDict`.

    Raises:
        RessaError: one line with file, line and field: malformed JSON, nothing to learn from (no answer, caption or
            text), a picture that is missing or lies outside the folder, no records at all.
    """
    if not isinstance(source, str | Path):
        return _from_table(source, split, "dataset")
    path = Path(source)
    if path.is_file():
        return _from_jsonl(path, path.stem)
    if not path.is_dir():
        raise RessaError(f"{path}: no such data folder or .jsonl file")
    if (path / f"{split}.jsonl").is_file():
        return _from_jsonl(path / f"{split}.jsonl", split)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _from_table(path, split, str(path))
    shards = sorted(path.glob("*-00000-of-*.parquet"))
    if any(shard.name.startswith(f"{split}-00000-") for shard in shards):
        return _from_table(path, split, str(path))
    splits = ", ".join(sorted([*(p.stem for p in path.glob("*.jsonl")), *(p.name.split("-00000-")[0] for p in shards)]))
    splits = splits or "none"
    raise RessaError(f"{path}: no {split}.jsonl (splits found there: {splits})")


def _from_table(source: Any, split: str, name: str) -> list[Record]:
    from ressa.data.tables import rows  # imports `datasets`, which is slow

    return collect(((raw, where, find) for raw, where, find in rows(source, split, name)), split, name)


def _from_jsonl(path: Path, split: str) -> list[Record]:
    folder = ImageFolder(path.parent)

    def find(value: object, where: str) -> Picture:
        if not isinstance(value, str):
            raise RessaError(f'{where}: field "image" must be a path, not {shown(value)}')
        return folder.find(value, where)

    return collect(((raw, where, find) for raw, where in _lines(path)), split, str(path))


def _lines(path: Path) -> Iterator[tuple[object, str]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json(line, f"{path}:{number}"), f"{path}:{number}"
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None


def _json(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RessaError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise RessaError(f"{where}: malformed JSON at column {error.colno} ({error.msg})") from None
    except RecursionError:
        raise RessaError(f"{where}: malformed JSON (nested too deeply)") from None


def collect(raws: Iterable[tuple[object, str, Find]], split: str, name: str) -> list[Record]:
    """Parse (raw record, "file:line", how to find its picture) triples; ids are made unique by the line."""
    records: dict[str, Record] = {}
    for raw, where, find in raws:
        if not isinstance(raw, Mapping):
            raise RessaError(f"{where}: a record must be an object in braces, not {shown(raw)}")
        number = where.rsplit(":", 1)[-1]
        ident = _scalar(raw, "id", where) or f"{split}-{number}"
        while ident in records:  # some published sets use the picture's id, several records to a picture
            ident = f"{ident}-{number}"
        records[ident] = _parse(raw, ident, where, find)
    if not records:
        raise RessaError(
            f'{name}: no records; it needs at least one line such as {{"image": ..., "question": ..., "answer": ...}}'
        )
    return list(records.values())


def _parse(raw: Mapping[str, Any], ident: str, where: str, find: Find) -> Record:
    kind = _scalar(raw, "kind", where)
    if raw.get("messages") is not None:
        asked, answer, inline = _conversation(raw["messages"], where)
        return Record(ident, asked, (answer,), None, kind, _picture(raw, inline, where, find))
    picture = _picture(raw, None, where, find)
    question, caption, prefix, text = (_text(raw, key, where) for key in ("question", "caption", "prefix", "text"))
    if question is not None:
        return Record(ident, question, _answers(raw, where), None, kind, picture)
    if caption is not None and picture is not None:
        return Record(ident, None, (), caption, kind, picture, prefix)
    if text is not None and picture is None:
        return Record(ident, None, (text,), None, kind, None)
    answered = raw.get("answer") is not None or raw.get("answers") is not None
    missing = '"image"' if caption else '"question"' if answered else '"answer" or "caption"'
    raise RessaError(f"{where}: no field {missing}; a record needs image, question and answer, or image and caption")


def _picture(raw: Mapping[str, Any], inline: object, where: str, find: Find) -> Picture | None:
    value = raw["image"] if raw.get("image") is not None else inline
    images = raw.get("images")
    if value is None and images is not None:
        if not isinstance(images, list) or len(images) != 1:
            raise RessaError(f'{where}: field "images" must hold exactly one picture')
        value = images[0]
    if value is not None:
        return find(value, where)
    for key in raw:  # a blind question is allowed, a misspelt field is not
        if key not in ("image", "images") and ("image" in key.lower() or "img" in key.lower()):
            raise RessaError(f'{where}: field {shown(key)} is not read; name the picture in "image"')
    return None


def _answers(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """`answer`, or `answers`: a list of texts, or of {"answer": text} as in VQAv2."""
    if raw.get("answers") is None:
        answer = _scalar(raw, "answer", where)
        if answer is None:
            raise RessaError(f'{where}: field "answer" is missing or empty; give an answer or remove the record')
        return (answer,)
    listed = raw["answers"]
    if isinstance(listed, str) or not isinstance(listed, list | tuple) or not listed:
        raise RessaError(f'{where}: field "answers" must be a list of texts with at least one')
    plain = [item if isinstance(item, Mapping) else {"answer": item} for item in listed]
    answers = tuple(_scalar(item, "answer", where) for item in plain)
    if None in answers:
        raise RessaError(f'{where}: field "answers" holds an empty answer')
    return tuple(answer for answer in answers if answer is not None)


def _text(raw: Mapping[str, Any], key: str, where: str) -> str | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise RessaError(f'{where}: field "{key}" must be a text that is not empty, not {shown(value)}')
    return value


def _scalar(raw: Mapping[str, Any], key: str, where: str) -> str | None:
    """A text or a number (as text); None when it is missing or blank."""
    value = raw.get(key)
    if isinstance(value, bool) or not (value is None or isinstance(value, str | int | float)):
        raise RessaError(f'{where}: field "{key}" must be a text or a number, not {shown(value)}')
    text = "" if value is None else str(value).strip()
    return text or None


def _conversation(messages: object, where: str) -> tuple[str, str, object]:
    """(question, answer, image or None) of one user and one assistant message."""
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise RessaError(f'{where}: field "messages" must be a list of {{"role", "content"}} objects')
    roles = [m.get("role") for m in messages]
    if roles != ["user", "assistant"]:
        raise RessaError(f'{where}: field "messages" must be one user and one assistant message, not {shown(roles)}')
    question, image = _content(messages[0], where)
    answer, _ = _content(messages[1], where)
    return question, answer, image


def _content(message: Mapping[str, Any], where: str) -> tuple[str, object]:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(p, Mapping) for p in parts):
        raise RessaError(f'{where}: field "messages" has a message without text content')
    text = "\n".join(str(p["text"]) for p in parts if p.get("text")).strip()
    images = [p for p in parts if p.get("type") in ("image", "image_url")]
    if not text or len(images) > 1:
        what = "a message without text" if not text else "more than one image"
        raise RessaError(f'{where}: field "messages" has {what}; a record is one image, one question, one answer')
    named = [p[key] for p in images for key in ("image", "path", "url") if p.get(key) is not None]
    return text, named[0] if named else None
