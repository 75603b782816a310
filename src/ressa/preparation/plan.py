"""The plan of a preparation, on disk (SQLite): its pictures, their annotations, and how far it has come.

Nothing of the source is in memory, what was finished is found again after a kill, and the output follows from the plan
alone; so it is the same however often the run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ressa.data.items import Annotation, Item, Place, Skip
from ressa.errors import RessaError
from ressa.preparation.settings import Prepare

TABLES = """
create table about (settings text);
create table skipped (reason text primary key, count integer);
create table pictures (number integer primary key, name text unique, place text, origin text, split text, rank blob,
                       chosen integer, file text, sha256 text, changes text, reason text, detail text,
                       passing integer not null default 0);
create table annotations (number integer primary key, picture integer, text text, question text, ident text,
                          kind text, others text, rank blob);
create index annotations_of on annotations (picture, rank);
"""
ALL = 1 << 62  # no limit
SPLITS = {"restval": "train", "val": "validation"}  # of publishers, by the names they get here


@dataclass(frozen=True)
class Planned:
    """A picture to be made."""

    number: int
    name: str
    place: Place


@dataclass(frozen=True)
class Outcome:
    """What became of a picture: a file with its SHA-256 and changes, or the reason why there is none."""

    number: int
    file: str | None = None
    sha256: str | None = None
    changes: tuple[str, ...] = ()
    reason: str | None = None
    detail: str = ""
    transient: bool = False


def rank(*of: object) -> bytes:
    """Sixteen bytes that look random and depend on the arguments alone: what has the lowest ones is drawn."""
    return hashlib.blake2b(repr(of).encode(), digest_size=16).digest()


def connect(path: Path) -> sqlite3.Connection:
    """The plan at `path`, for one process. Raises RessaError if another one has it."""
    try:
        db = sqlite3.connect(path, timeout=0, isolation_level=None)
        db.execute("pragma locking_mode = exclusive")
        db.execute("begin exclusive")
        db.execute("commit")
    except sqlite3.Error as error:
        raise RessaError(
            f"{path.parent}: is in use by another preparation, or damaged ({error}); wait for it, or delete the folder"
        ) from None
    return db


def settings_of(db: sqlite3.Connection) -> str | None:
    """What the plan was made for; None if there is no complete plan."""
    if not db.execute("select 1 from sqlite_master where name = 'about'").fetchone():
        return None
    return str(db.execute("select settings from about").fetchone()[0])


def make(db: sqlite3.Connection, items: Iterable[Item | Skip], settings: Prepare, about: str) -> Iterator[int]:
    """Writes the plan, whole or not at all; yields how many records of the source have been read.

    A picture goes where its publisher put it, else into `split` but for the shares held out, by its name and `seed`.
    Of each split the `limit` pictures of lowest rank are chosen. `about` is what `settings_of` then finds.
    """
    db.execute("begin")
    for statement in filter(str.strip, TABLES.split(";")):
        db.execute(statement)
    for n, item in enumerate(items, 1):
        if isinstance(item, Skip):
            _skip(db, item.reason)
        else:
            _add(db, item, settings)
        yield n
    db.execute(
        "update pictures set chosen = 1 where number in (select number from (select number, row_number() over "
        "(partition by split order by rank) as place from pictures where number in (select picture from annotations)) "
        "where place <= ?)",
        (settings.limit or ALL,),
    )
    db.execute("insert into about values (?)", (about,))
    db.execute("commit")


def to_make(db: sqlite3.Connection) -> Sequence[int]:
    """Numbers of the chosen pictures of which nothing is known yet, and of those whose failure may have passed."""
    found = db.execute("select number from pictures where chosen and (passing or (file is null and reason is null))")
    return array("q", (number for (number,) in found))


def forget_lost(db: sqlite3.Connection, folder: Path) -> None:
    """Takes pictures that are no longer on the disk (the machine stopped, not only the run) for not yet made."""
    made = db.execute("select number, file from pictures where file is not null")
    lost = [Outcome(number) for number, file in made if not (folder / file).is_file()]
    keep(db, lost)


def planned(db: sqlite3.Connection, number: int) -> Planned:
    name, place = db.execute("select name, place from pictures where number = ?", (number,)).fetchone()
    return Planned(number, name, tuple(json.loads(place)))


def keep(db: sqlite3.Connection, outcomes: Iterable[Outcome]) -> None:
    """Writes outcomes down, all or none."""
    db.execute("begin")
    db.executemany(
        "update pictures set file = ?, sha256 = ?, changes = ?, reason = ?, detail = ?, passing = ? where number = ?",
        [(o.file, o.sha256, ", ".join(o.changes), o.reason, o.detail, o.transient, o.number) for o in outcomes],
    )
    db.execute("commit")


def tally(db: sqlite3.Connection, query: str) -> dict[str, int]:
    """What a query of (name, count) finds."""
    return dict(db.execute(query))


def _skip(db: sqlite3.Connection, reason: str) -> None:
    db.execute("insert into skipped values (?, 1) on conflict do update set count = count + 1", (reason,))


def _add(db: sqlite3.Connection, item: Item, settings: Prepare) -> None:
    split = SPLITS.get(item.split, item.split) if item.split else _drawn(item.picture, settings)
    db.execute(
        "insert or ignore into pictures (name, place, origin, split, rank) values (?, ?, ?, ?, ?)",
        (item.picture, json.dumps(item.place), item.where, split, rank(settings.seed, item.picture)),
    )
    (number,) = db.execute("select number from pictures where name = ?", (item.picture,)).fetchone()
    for annotation in item.annotations:
        if not annotation.text or annotation.question == "":
            _skip(db, "empty text")
        else:
            _annotate(db, number, annotation, rank(settings.seed, item.picture, annotation.question, annotation.text))


def _annotate(db: sqlite3.Connection, picture: int, annotation: Annotation, rank: bytes) -> None:
    others = json.dumps([other for other in annotation.others if other])
    db.execute(
        "insert into annotations (picture, text, question, ident, kind, others, rank) values (?, ?, ?, ?, ?, ?, ?)",
        (picture, annotation.text, annotation.question, annotation.id, annotation.kind, others, rank),
    )


def _drawn(picture: str, settings: Prepare) -> str:
    """The split of a picture: the same whatever else is in the source."""
    at = int.from_bytes(rank("split", settings.seed, picture)[:8], "big") / 2**64
    for name in ("validation", "test"):
        if at < (share := getattr(settings, name)):
            return name
        at -= share
    return settings.split
