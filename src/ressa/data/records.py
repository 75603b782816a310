"""Records: a picture, what is asked of it and what is right. Read from JSONL, Parquet, a saved `datasets` folder or a
Dataset.

A record in a JSONL file is one of

    {"image": "images/1.png", "question": "What is it?", "answer": "an owl"}      or "answers": ["an owl", "owl", ...]
    {"image": "images/1.png", "caption": "an owl in a tree"}
    {"image": "images/1.png", "prefix": "an owl", "caption": "in a tree"}
    {"image": "images/1.png", "messages": [{"role": "user", ...}, {"role": "assistant", ...}]}
    {"text": "Owls are birds."}

Where something else is to answer (`unlabelled`), "answer" and "caption" may be left out. `id` and `kind` are optional;
other fields are ignored, unless they look like pictures (`media`). docs/data.md has all forms. Pictures are paths below
the folder of the JSONL file; they are looked up when the records are read and opened only by `Record.open_image`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ressa.data.chats import beside, exchanges, turns
from ressa.data.embedded import ImageCell, ImageText, is_embedded
from ressa.data.fields import optional_text, scalar, texts_in
from ressa.data.images import ImageFolder, Picture, picture_names
from ressa.data.media import picture, unmarked
from ressa.data.stream import Row, first_sign, json_lines
from ressa.data.tables import is_saved, load, shards
from ressa.errors import RessaError, shown
from ressa.files.paths import path_of

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


def read_records(source: str | Path | Any, split: str = "train", *, unlabelled: bool = False) -> list[Record]:
    """All records of a split, in their order; `id` is the record's own (made unique), else "train-7" for line 7.

    Args:
        source: a folder with {split}.jsonl or with Parquet (`shards`), one .jsonl or .parquet file (`split` is then
            only a name), a folder written by `datasets` (`save_to_disk`), a `datasets.Dataset`, or a
            `datasets.DatasetDict`.
        split: its name, or several with + between them, of a folder.
        unlabelled: a question may stand without an answer, and a picture alone (its caption is "" then); in a folder
            that has no records at all, each picture is one.

    Raises:
        RessaError: one line with file, line and field: malformed JSON, nothing to learn from (no answer, caption or
            text), a picture that is missing or lies outside the folder, no records at all.
    """
    if not isinstance(source, str | Path):
        return _from_table(source, split, "dataset", unlabelled)
    path = path_of(source, "data")
    if path.is_file():
        table = path.suffix == ".parquet"
        read = _from_table if table else _from_jsonl
        return read(path, path.stem, str(path), unlabelled)
    if not path.is_dir():
        raise RessaError(f"{path}: no such data folder or .jsonl file")
    if "+" in split:
        return [record for one in split.split("+") for record in read_records(source, one, unlabelled=unlabelled)]
    if (file := path / f"{split}.jsonl").is_file():
        return _from_jsonl(file, split, str(file), unlabelled)
    if is_saved(path) or shards(path, split):
        return _from_table(path, split, str(path), unlabelled)
    named = [*(p.stem for p in path.glob("*.jsonl")), *(p.stem.split("-0")[0] for p in shards(path))]
    if unlabelled and not named and (found := picture_names(path)):
        rows = (({"image": name, "id": name}, f"{path}:{number}") for number, name in enumerate(found, 1))
        return _collect(rows, _finder(ImageFolder(path)), split, str(path), unlabelled)
    there = ", ".join(sorted(set(named))) or "none"
    raise RessaError(f"{path}: no {split}.jsonl (splits found there: {there}){_converted(path)}")


def _finder(folder: ImageFolder | None) -> Find:
    """How a picture is found by what its field holds: a path below `folder`, base64, {"bytes", "path"}, a cell."""

    def find(value: object, where: str) -> Picture:
        if isinstance(value, ImageCell):
            return _checked(value, folder, where)
        if isinstance(value, Mapping):
            value = next((value[key] for key in ("bytes", "path", "url") if value.get(key)), value)
        if isinstance(value, str) and is_embedded(value):
            return ImageText(value, where)
        if not isinstance(value, str):
            raise RessaError(f'{where}: field "image" must be a path, not {shown(value)}')
        if folder is None:
            raise RessaError(f'{where}: field "image" is a plain value; cast the column to datasets.Image()')
        return folder.find(value, where)

    return find


def _checked(cell: ImageCell, folder: ImageFolder | None, where: str) -> Picture:
    """The picture of a cell; where it only names a file, that file."""
    if cell.path is not None and folder is not None:
        return folder.find(cell.path, where)
    if cell.path is not None and not os.path.isfile(cell.path):
        raise RessaError(f"{where}: image {shown(cell.path)} does not exist; add the file or remove the record")
    return cell


def _converted(path: Path) -> str:
    """The command that makes records of LLaVA's conversations, where a folder has them."""
    for file in (file for file in sorted(path.glob("*.json")) if file.is_file()):
        with file.open("rb") as opened:
            if b'"conversations"' in opened.read(1 << 16):
                return f"; {file.name} has conversations: ressa data llava-mix {file} OUT --images {path}"
    return ""


def _from_table(source: Any, split: str, name: str, unlabelled: bool) -> list[Record]:
    from ressa.data.columns import light_rows  # imports `datasets`, which is slow

    folder = None
    if isinstance(source, Path):
        folder = ImageFolder(source.parent if source.is_file() else source)
    return _collect(light_rows(load(source, split, name), name), _finder(folder), split, name, unlabelled)


def _from_jsonl(path: Path, split: str, name: str, unlabelled: bool) -> list[Record]:
    if first_sign(path) == b"[":
        raise RessaError(
            f"{path}: a JSON array, where each line should be an object of its own; if it holds "
            f"conversations: ressa data llava-mix {path} OUT --images {path.parent}"
        )
    return _collect(json_lines(path), _finder(ImageFolder(path.parent)), split, name, unlabelled)


def _collect(rows: Iterable[Row], find: Find, split: str, name: str, unlabelled: bool) -> list[Record]:
    """Records of (object, "file:line") pairs; ids are made unique by the line."""
    records: dict[str, Record] = {}
    for raw, where in rows:
        number = where.rsplit(":", 1)[-1]
        ident = scalar(raw, "id", where) or f"{split}-{number}"
        for record in _parse(raw, ident, where, find, unlabelled):
            while record.id in records:  # some published sets use the picture's id, several records to a picture
                record = replace(record, id=f"{record.id}-{number}")
            records[record.id] = record
    if not records:
        raise RessaError(
            f'{name}: no records; it needs at least one line such as {{"image": ..., "question": ..., "answer": ...}}'
        )
    return list(records.values())


def _parse(raw: Mapping[str, Any], ident: str, where: str, find: Find, unlabelled: bool) -> list[Record]:
    kind = scalar(raw, "kind", where)
    for key in ("messages", "conversations"):
        if raw.get(key) is not None:
            return _chat(raw, key, Record(ident, None, (), kind=kind), where, find)
    named = picture(raw, None, where)
    image = None if named is None else find(named, where)
    question, caption, prefix, text = (
        optional_text(raw, key, where) for key in ("question", "caption", "prefix", "text")
    )
    if question is not None:
        asked = unmarked(question, image is not None, f'{where}: field "question"')
        silent = unlabelled and raw.get("answers") is None and scalar(raw, "answer", where) is None
        return [Record(ident, asked, () if silent else _answers(raw, where), None, kind, image)]
    described = text if caption is None else caption
    if described is not None and image is not None:
        return [Record(ident, None, (), unmarked(described, True, where), kind, image, prefix)]
    if text is not None and image is None:
        return [Record(ident, None, (text,), None, kind, None)]
    if unlabelled and image is not None:
        return [Record(ident, None, (), "", kind, image, prefix)]
    answered = raw.get("answer") is not None or raw.get("answers") is not None
    missing = '"image"' if caption else '"question"' if answered else '"answer" or "caption"'
    raise RessaError(f"{where}: no field {missing}; a record needs image, question and answer, or image and caption")


def _chat(raw: Mapping[str, Any], key: str, plain: Record, where: str, find: Find) -> list[Record]:
    """A record for each question with its answer, without those before it, each with the picture shown till then."""
    at, messages = f'{where}: field "{key}"', raw[key]
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise RessaError(f'{at} must be a list of {{"role", "content"}} objects')
    chat = [*beside(raw), *turns(messages, at)]
    pairs = exchanges(chat)
    if pairs is None:
        raise RessaError(f"{at} must be user and assistant in turn, not {shown([turn.speaker for turn in chat])}")
    shows = [(n, image) for n, turn in enumerate(chat) for image in turn.images]
    if len(shows) > 1 or any(chat[n].speaker != "human" for n, _ in shows):
        raise RessaError(f"{at} has {len(shows)} pictures, or one in an answer; a record has one, in its question")
    named = picture(raw, shows[0][1] if shows else None, where)
    if shows and named is None:
        raise RessaError(f'{at} marks a picture, but the record has none; name it in the part or in "image"')
    image = None if named is None else find(named, where)
    leading = len(chat) - 2 * len(pairs)  # system messages
    first = (shows[0][0] - leading) // 2 if shows and shows[0][1] is not None else 0
    records = []
    for n, pair in enumerate(pairs):
        seen = image if n >= first else None
        question, answer = unmarked(pair.question, seen is not None, at).strip(), pair.answer.strip()
        if not question or not answer:
            raise RessaError(f"{at} has a message without text; a record is one image, one question, one answer")
        ident = plain.id if len(pairs) == 1 else f"{plain.id}-{n + 1}"
        records.append(replace(plain, id=ident, question=pair.asked(question), answers=(answer,), image=seen))
    return records


def _answers(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """`answer`, or `answers`: a list of texts, or of {"answer": text} as in VQAv2."""
    if raw.get("answers") is None:
        answer = scalar(raw, "answer", where)
        if answer is None:
            raise RessaError(f'{where}: field "answer" is missing or empty; give an answer or remove the record')
        return (answer,)
    answers = None if isinstance(raw["answers"], str) else texts_in(raw["answers"])
    if answers is None:
        raise RessaError(f'{where}: field "answers" must be a list of texts with at least one')
    if "" in answers:
        raise RessaError(f'{where}: field "answers" holds an empty answer')
    return tuple(answers)
