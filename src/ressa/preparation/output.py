"""What a finished plan says, written: records or shards, the report, the sums. Doing it again gives the same bytes."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ressa.data.items import Annotation
from ressa.errors import RessaError, printable, to_json
from ressa.files.folders import sync
from ressa.preparation import plan
from ressa.preparation.forms import record
from ressa.preparation.pictures import SCALED
from ressa.preparation.settings import Prepare, Progress
from ressa.preparation.sums import write_sums

REPORT = "report.csv"
MANIFEST = "ressa.json"

RECORDS = """
select p.file, a.text, a.question, a.ident, a.kind, a.others, a.rank
from annotations a join pictures p on a.picture = p.number
where p.split = ? and p.file is not null and (? is null or a.number in (
    select number from (
        select number, row_number() over (partition by picture order by rank, number) as place from annotations)
    where place <= ?))
order by a.number
"""


def write_records(
    db: sqlite3.Connection, out: Path, pictures: Path, settings: Prepare, progress: Progress
) -> tuple[dict[str, int], dict[str, int]]:
    """Writes each split as JSONL, or in shards; (records of each split, texts of no use by their reasons)."""
    counts, unused = {}, Counter[str]()
    for (split,) in db.execute("select distinct split from pictures where file is not null order by split").fetchall():
        records = _records(db, split, settings, unused, progress)
        if settings.shard_size is None:
            counts[split] = _jsonl(out / f"{split}.jsonl", records)
        else:
            from ressa.preparation.shards import write_shards  # imports `datasets`, which is slow

            placed = ({**row, "image": str(pictures / row["image"])} for row in records)
            counts[split] = write_shards(out, split, placed, settings.shard_size)
    if not any(counts.values()):
        raise RessaError(f"nothing could be made: {_reasons(db, unused)}")
    return counts, dict(unused)


def _records(
    db: sqlite3.Connection, split: str, settings: Prepare, unused: Counter[str], progress: Progress
) -> Iterator[dict[str, Any]]:
    asked = (split, settings.per_picture, settings.per_picture)
    (total,) = db.execute(f"select count(*) from ({RECORDS})", asked).fetchone()
    for n, (file, text, question, ident, kind, others, rank) in enumerate(db.execute(RECORDS, asked), 1):
        annotation = Annotation(text, question, others=tuple(json.loads(others)))
        made = record(annotation, settings.form, int.from_bytes(rank, "big"))
        if isinstance(made, str):
            unused[made] += 1
        else:
            named = {"id": ident, "kind": kind}
            yield {"image": file, **made, **{key: value for key, value in named.items() if value is not None}}
        if n % 1000 == 0 or n == total:
            progress(n, total, split)


def _jsonl(path: Path, records: Iterator[Mapping[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in records:
            file.write(to_json(row) + "\n")
            count += 1
    if not count:
        path.unlink()
    return count


def write_report(db: sqlite3.Connection, out: Path) -> dict[str, Any]:
    """Writes report.csv, every picture that failed or was converted (not merely scaled); the counts of all."""
    rows = db.execute(
        "select name, reason, detail, changes, file, origin from pictures where chosen and (reason is not null or "
        "changes not in ('', ?)) order by number",
        (SCALED,),
    )
    with (out / REPORT).open("w", encoding="utf-8", newline="") as file:
        sheet = csv.writer(file, lineterminator="\n")
        sheet.writerow(["picture", "outcome", "what", "detail", "file", "record"])
        for name, reason, detail, changes, made, origin in rows:
            outcome = "unusable" if reason else "converted"
            sheet.writerow(map(_cell, (name, outcome, reason or changes, detail, made or "", origin)))
    converted: Counter[str] = Counter()
    for changes, count in db.execute("select changes, count(*) from pictures where changes != '' group by changes"):
        converted.update(dict.fromkeys(changes.split(", "), count))
    (asked, made, left) = db.execute(
        "select count(*), count(file), (select count(*) from pictures where chosen is null) from pictures where chosen"
    ).fetchone()
    failed = plan.tally(db, "select reason, count(*) from pictures where reason is not null group by reason")
    return {
        "pictures": {"asked": asked, "made": made, "unusable": asked - made, "not asked": left},
        "unusable": dict(sorted(failed.items())),
        "converted": dict(sorted(converted.items())),
    }


def _cell(text: str) -> str:
    """A cell that no terminal obeys, nor a spreadsheet, for which =, +, - and @ begin a formula."""
    line = printable(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def finish(db: sqlite3.Connection, out: Path, manifest: Mapping[str, Any], *, sharded: bool) -> None:
    """Writes ressa.json and the sums, and waits until all is on the disk."""
    (out / MANIFEST).write_text(to_json(manifest, indent=2) + "\n", encoding="utf-8")
    made = db.execute("select file, sha256 from pictures where file is not null order by file")
    write_sums(out, () if sharded else made)
    for path in out.iterdir():
        sync(path)
    sync(out)


def _reasons(db: sqlite3.Connection, unused: Mapping[str, int]) -> str:
    skipped = plan.tally(db, "select reason, count from skipped") | dict(unused)
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(skipped.items())) or "the source is empty"
