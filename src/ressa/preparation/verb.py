"""The verb: an official download, or any table, becomes a data folder.

First the source is read to its end and planned (so a malformed file is refused before any picture is touched), then the
pictures are made, then everything is written. All of it happens in a hidden folder beside the output, `.NAME.partial`,
which a later run with the same settings takes up, and which becomes the output at the end.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ressa.data.images import shown
from ressa.errors import RessaError, unknown
from ressa.files.folders import check_output, not_written, sync
from ressa.files.paths import expanded
from ressa.preparation import plan
from ressa.preparation.cc3m import cc3m
from ressa.preparation.coco_captions import coco_captions
from ressa.preparation.conversations import conversations
from ressa.preparation.forms import FORMS
from ressa.preparation.gqa import gqa
from ressa.preparation.items import Item, Skip
from ressa.preparation.output import Progress, finish, write_records, write_report
from ressa.preparation.places import Cell, Places
from ressa.preparation.vg import vg
from ressa.preparation.work import make_pictures

Read = Callable[[Path], Iterator[Item | Skip]]

SOURCES: dict[str, Read | None] = {
    "coco-captions": coco_captions,
    "cc3m": cc3m,
    "vg": vg,
    "gqa": gqa,
    "llava-mix": conversations,
    "sharegpt4v": conversations,
    "dataset": None,  # a table, which is not read by its path
}


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the output; `recipe.Prepare` explains it."""

    form: str = "plain"
    split: str = "train"
    validation: float = 0.0
    test: float = 0.0
    limit: int | None = None
    per_picture: int | None = None
    seed: int = 0
    max_side: int | None = None
    shard_size: int | None = None
    columns: str | None = None
    source_split: str = "train"


def prepare(
    name: str,
    source: str,
    out: str | Path,
    *,
    images: Sequence[str] = (),
    progress: Callable[[str], Progress] = lambda title: lambda done, total, what: None,
    workers: int = 16,
    timeout: float = 20.0,
    retries: int = 2,
    max_failed: float = 0.5,
    **told: Any,
) -> dict[str, Any]:
    """Prepares `source`, a file or folder in the format of `name`, as the data folder `out`; what ressa.json says.

    Args:
        images: folders and zips in which the source's picture names are looked up.
        progress: given the title of a bar, gives what is called with (done, total or None, what).
        workers, timeout, retries, max_failed: as `recipe.Prepare` explains them; a later run may have others.
        told: the fields of `Options`, which decide what is options.

    Raises:
        RessaError: an unknown source, one that is not in its format, an output that is not empty, too many pictures
            that cannot be used; and an interrupted preparation of `out` with other settings.
    """
    options = Options(**told)
    _check_options(name, options)
    out, source = check_output(out), expanded(source, "the source")
    images = [expanded(entry, "images") for entry in images]
    items, cell, identity = _source(name, source, options)
    places = Places(images, cell, workers=workers, timeout=timeout, retries=retries)
    manifest = {"verb": "data", "name": name, "source": source, "images": list(images), "settings": asdict(options)}
    partial = out.absolute().parent / f".{out.absolute().name}.partial"
    with _plan(partial, manifest, identity) as db:
        if plan.settings_of(db) is None:
            _planned(db, items, options, json.dumps([manifest, identity]), progress("reading"))
            _check_plan(db, name, options, bool(images))
        pictures = partial / ("made" if options.shard_size else "out")
        make_pictures(
            db,
            pictures,
            places,
            workers=workers,
            max_side=options.max_side,
            max_failed=max_failed,
            progress=progress("making pictures"),
        )
        result = _written(db, partial / "out", pictures, options, manifest, progress("writing records"))
    _appear(partial, out.absolute())
    return result


def _appear(partial: Path, out: Path) -> None:
    try:
        os.replace(partial / "out", out)
        sync(out.parent)
    except OSError as error:
        raise RessaError(f"{out}: cannot be written ({error.strerror}); all is ready in {partial}, run again") from None
    shutil.rmtree(partial)


def _source(name: str, source: str, options: Options) -> tuple[Iterator[Item | Skip], Cell | None, list[Any]]:
    """(what the source holds, how to get a picture of a table, what changes when the source does)."""
    read = SOURCES[name]
    if read is not None:
        return read(Path(source)), None, _identity(Path(source))
    from ressa.preparation import table as tables  # imports `datasets`, which is slow

    table = tables.load(source, options.source_split)
    columns = tables.mapping(table, options.columns, source)
    cell = functools.partial(tables.cell, table, column=columns["image"])
    return tables.rows(table, columns, source), cell, [table._fingerprint]


def _check_options(name: str, options: Options) -> None:
    if name not in SOURCES:
        raise unknown("source", name, SOURCES)
    if options.form not in FORMS:
        raise unknown("form", options.form, FORMS)
    for limit in ("limit", "per_picture", "max_side", "shard_size"):
        if (value := getattr(options, limit)) is not None and value < 1:
            raise RessaError(f"{limit} {value} must be at least 1")
    if name == "coco-captions" and (options.validation or options.test or options.split != "train"):
        raise RessaError("coco-captions has splits of its own; leave out split, validation and test")
    if not re.fullmatch(r"[\w-]+", options.split):
        raise RessaError(f"split {shown(options.split)} must be a plain name: it becomes the name of a file")
    if options.validation + options.test >= 1:
        shares = f"validation {options.validation:g} and test {options.test:g}"
        raise RessaError(f"{shares} leave nothing for {options.split}")
    if SOURCES[name] is not None and (options.columns or options.source_split != "train"):
        raise RessaError(f"{name} has a format of its own; columns and source_split are for `dataset`")


def _identity(source: Path) -> list[Any]:
    files = sorted(source.glob("*.tar")) if source.is_dir() else [source] if source.is_file() else []
    return [[file.name, (found := file.stat()).st_size, found.st_mtime_ns] for file in files]


@contextmanager
def _plan(partial: Path, manifest: Mapping[str, Any], identity: list[Any]) -> Iterator[sqlite3.Connection]:
    """The plan in the hidden folder. If there is none when it ends, the folder goes, with the parents made for it."""
    above = [folder for folder in partial.parents if not folder.exists()]
    if partial.is_dir() and not (partial / "out").is_dir():
        shutil.rmtree(partial)  # of a run that was killed when all but tidying up was done
    fresh, db = not partial.exists(), None
    try:
        for name in ("out", "parts"):
            (partial / name).mkdir(parents=True, exist_ok=True)
        db = plan.connect(partial / "plan.sqlite")
        for left in (partial / "parts").iterdir():
            left.unlink()
        _check_same(partial, plan.settings_of(db), [manifest, identity])
        yield db
    except OSError as error:
        raise not_written(partial, partial, error) from None
    except sqlite3.Error as error:
        raise RessaError(f"{partial}: cannot be written ({error})") from None
    finally:
        there = False
        if db is not None:
            db.rollback()  # of an interrupted plan
            there = plan.settings_of(db) is not None
            db.close()
        if not there and (db is not None or fresh):
            shutil.rmtree(partial, ignore_errors=True)
        for folder in above:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _check_same(partial: Path, before: str | None, now: list[Any]) -> None:
    if before is None or (then := json.loads(before)) == json.loads(json.dumps(now)):
        return
    flat = [{**told[0], **told[0]["settings"], "the source's files": told[1]} for told in (then, now)]
    other = [key for key in flat[1] if key != "settings" and flat[0].get(key) != json.loads(json.dumps(flat[1][key]))]
    raise RessaError(
        f"{partial}: an unfinished preparation with another {', '.join(other)} ({shown(flat[0].get(other[0]))}, "
        f"not {shown(flat[1][other[0]])}); finish it with the same, or delete that folder"
    )


def _planned(
    db: sqlite3.Connection, items: Iterator[Item | Skip], options: Options, settings: str, progress: Progress
) -> None:
    held_out = {"validation": options.validation, "test": options.test}
    n = 0
    for n in plan.make(
        db, items, settings, seed=options.seed, split=options.split, held_out=held_out, limit=options.limit
    ):
        if n % 1000 == 0:
            progress(n, None, "")
    progress(n, n, "")


def _check_plan(db: sqlite3.Connection, name: str, options: Options, images: bool) -> None:
    """Raises RessaError for what could only fail, with the plan taken back so that nothing is left of it."""
    named = db.execute("""select 1 from pictures where place like '["file"%'""").fetchone()
    told = db.execute("select 1 from said where ? != 'prefix' or question is null", (options.form,)).fetchone()
    if told and (images or not named):
        return
    db.execute("drop table about")
    if not told:
        what = "captions that could be cut into prefixes" if options.form == "prefix" else "texts"
        raise RessaError(f"{name}: the source has no {what}; choose another form or source")
    raise RessaError(f"{name}: the source only names its pictures; give their folder or zip with --images")


def _written(
    db: sqlite3.Connection, out: Path, pictures: Path, options: Options, manifest: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    for left in out.iterdir():
        if not left.is_dir():
            left.unlink()  # of an interrupted writing
    counts = write_report(db, out)
    splits, unused = write_records(
        db,
        out,
        pictures,
        form=options.form,
        per_picture=options.per_picture,
        shard_size=options.shard_size,
        progress=progress,
    )
    skipped = plan.tally(db, "select reason, count from skipped") | unused
    result = (
        manifest | {"ressa": version("ressa"), "records": splits, "skipped": dict(sorted(skipped.items()))} | counts
    )
    finish(db, out, result, sharded=options.shard_size is not None)
    return result
