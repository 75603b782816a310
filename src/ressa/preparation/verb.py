"""The verb: an official download, or any table, becomes a data folder.

First the source is read to its end and planned (so a malformed file is refused before any picture is touched), then the
pictures are made, then everything is written. All of it happens in a hidden folder beside the output, `.NAME.partial`,
which a later run with the same settings takes up, and which becomes the output at the end.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ressa.data.items import Item, Skip
from ressa.errors import RessaError, check_extra, shown, unknown
from ressa.files.folders import check_output, not_written, sync
from ressa.files.paths import expanded
from ressa.preparation import plan
from ressa.preparation.output import finish, write_records, write_report
from ressa.preparation.places import Cell, Places
from ressa.preparation.settings import DECIDING, Prepare, Progress
from ressa.preparation.sources import SOURCES
from ressa.preparation.work import make_pictures


def prepare(
    name: str,
    source: str,
    out: str | Path,
    *,
    settings: Prepare = Prepare(),  # noqa: B008 - frozen
    images: Sequence[str] = (),
    progress: Callable[[str], Progress] = lambda title: lambda done, total, what: None,
) -> dict[str, Any]:
    """Prepares `source`, a file or folder in the format of `name`, as the data folder `out`; what ressa.json says.

    Args:
        settings: a later run takes up an interrupted one if those of `DECIDING` are the same.
        images: folders and zips in which the source's picture names are looked up.
        progress: given the title of a bar, gives what is called with (done, total or None, what).

    Raises:
        RessaError: an unknown source, one that is not in its format, an output that is not empty, too many pictures
            that cannot be used; and an interrupted preparation of `out` with other settings.
    """
    check_extra("data")
    _check(name, settings)
    out, source = check_output(out), expanded(source, "the source")
    images = [expanded(entry, "images") for entry in images]
    items, cell, identity = _source(name, source, settings)
    places = Places(images, cell, settings)
    deciding = {key: getattr(settings, key) for key in DECIDING}
    manifest = {"command": "data", "name": name, "source": source, "images": images, "settings": deciding}
    partial = out.absolute().parent / f".{out.absolute().name}.partial"
    with _plan(partial, manifest, identity) as db:
        if plan.settings_of(db) is None:
            _make_plan(db, items, settings, json.dumps([manifest, identity]), progress("reading"))
            _check_plan(db, name, settings, bool(images))
        pictures = partial / ("made" if settings.shard_size else "out")
        make_pictures(db, pictures, places, settings, progress("making pictures"))
        counts = _write(db, partial / "out", pictures, settings, progress("writing records"))
        result = manifest | {"ressa": version("ressa")} | counts
        finish(db, partial / "out", result, sharded=settings.shard_size is not None)
    _appear(partial, out.absolute())
    return result


def _appear(partial: Path, out: Path) -> None:
    try:
        os.replace(partial / "out", out)
        sync(out.parent)
    except OSError as error:
        raise RessaError(f"{out}: cannot be written ({error.strerror}); all is ready in {partial}, run again") from None
    shutil.rmtree(partial)


def _source(name: str, source: str, settings: Prepare) -> tuple[Iterator[Item | Skip], Cell | None, list[Any]]:
    """(what the source holds, how to get a picture of a table, what changes when the source does)."""
    read = SOURCES[name].items
    if read is not None:
        return read(Path(source)), None, _identity(Path(source))
    from ressa.data.tables import load  # imports `datasets`, which is slow
    from ressa.preparation import table as tables

    table = load(source, settings.source_split, source)
    columns = tables.mapping(table, settings.columns, source)
    cell = functools.partial(tables.cell, table, column=columns["image"])
    return tables.rows(table, columns, source), cell, [table._fingerprint]


def _check(name: str, settings: Prepare) -> None:
    if name not in SOURCES:
        raise unknown("source", name, SOURCES)
    if SOURCES[name].has_splits and (settings.validation or settings.test or settings.split != "train"):
        raise RessaError(f"{name} has splits of its own; leave out split, validation and test")
    if SOURCES[name].items is not None and (settings.columns or settings.source_split != "train"):
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
    flat = [{**of, **of["settings"], "the source's files": files} for of, files in (then, now)]
    other = [key for key in flat[1] if key != "settings" and flat[0].get(key) != json.loads(json.dumps(flat[1][key]))]
    raise RessaError(
        f"{partial}: an unfinished preparation with another {', '.join(other)} ({shown(flat[0].get(other[0]))}, "
        f"not {shown(flat[1][other[0]])}); finish it with the same, or delete that folder"
    )


def _make_plan(
    db: sqlite3.Connection, items: Iterator[Item | Skip], settings: Prepare, about: str, progress: Progress
) -> None:
    n = 0
    for n in plan.make(db, items, settings, about):
        if n % 1000 == 0:
            progress(n, None, "")
    progress(n, n, "")


def _check_plan(db: sqlite3.Connection, name: str, settings: Prepare, images: bool) -> None:
    """Raises RessaError for what could only fail, with the plan taken back so that nothing is left of it."""
    named = db.execute("""select 1 from pictures where place like '["file"%'""").fetchone()
    usable = "select 1 from annotations where ? != 'prefix' or question is null"
    found = db.execute(usable, (settings.form,)).fetchone()
    if found and (images or not named):
        return
    db.execute("drop table about")
    if not found:
        what = "captions that could be cut into prefixes" if settings.form == "prefix" else "texts"
        raise RessaError(f"{name}: the source has no {what}; choose another form or source")
    raise RessaError(f"{name}: the source only names its pictures; give their folder or zip with --images")


def _write(db: sqlite3.Connection, out: Path, pictures: Path, settings: Prepare, progress: Progress) -> dict[str, Any]:
    """Writes report and records; the counts of records, pictures and what was skipped."""
    for left in out.iterdir():
        if not left.is_dir():
            left.unlink()  # of an interrupted writing
    counts = write_report(db, out)
    splits, unused = write_records(db, out, pictures, settings, progress)
    skipped = plan.tally(db, "select reason, count from skipped") | unused
    return {"records": splits, "skipped": dict(sorted(skipped.items()))} | counts
