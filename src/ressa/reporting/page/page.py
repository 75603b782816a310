"""report: everything that folders of ressa hold as one page that opens from disk, with a markdown twin."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ressa.errors import RessaError, printable
from ressa.files.paths import path_of
from ressa.files.text import write_atomic
from ressa.reporting.page.charts import charts
from ressa.reporting.page.collect import Cell, Report, collect
from ressa.reporting.page.gallery import Gallery, gallery
from ressa.reporting.page.numbers import figure_data, verdicts
from ressa.reporting.page.tables import MAPS, costs_table, kinds_table, maps, models_table, versions_table

LIMIT = 2_000_000  # bytes of a page
MARK = "written by ressa report"
HERE = Path(__file__).parent
SPECIAL = "\\`*_[]<>#|~&"  # what markdown would read as more than text


def report(folders: Sequence[str | Path], out: str | Path = "report.html") -> dict[str, Any]:
    """Writes one page about `folders` to `out`, and the same as markdown beside it.

    Args:
        folders: of models, of `run`, `compare` or `evaluate --out`, or above any of them.
        out: a name that ends in .html; a page of an earlier report there is replaced.

    Returns:
        {"out", "markdown": their paths, "verdict", "models": their names, "questions", "shown": of them, "bytes"}

    Raises:
        RessaError: as `collect`, and for an `out` that is no .html, a folder, or a file that no report wrote.
    """
    path = path_of(out, "out")
    twin = path.with_suffix(".md")
    _check(path, twin)
    found = collect(folders)
    facts = _facts(found)
    bare = len(_page(facts, Gallery([], 0, {}, 0)).encode())
    cards = gallery(found, LIMIT - bare - 150_000)
    page = _page(facts, cards)
    if len(page.encode()) > LIMIT:
        raise RessaError(f"{path}: a page of these {len(found.models)} models would be larger than 2 MB; name fewer")
    write_atomic(path, page)
    write_atomic(twin, _template("page.md.j2", finalize=_markdown).render(**facts, gallery=cards))
    summary = {"out": str(path), "markdown": str(twin), "verdict": facts["verdicts"][0]}
    summary |= {"models": [model.name for model in found.models], "questions": cards.all, "shown": len(cards.cards)}
    return summary | {"bytes": len(page.encode())}


def _check(path: Path, twin: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise RessaError(f"{path}: the page needs a name that ends in .html")
    for file in (path, twin):
        if file.is_dir():
            raise RessaError(f"{file}: is a folder; name a file")
        if file.is_file() and MARK not in file.read_bytes()[:500].decode(errors="replace"):
            raise RessaError(f"{file}: is there already and no report; name another")


def _facts(found: Report) -> dict[str, Any]:
    """What both templates print."""
    heat = maps(found)
    data = figure_data(found)
    table = models_table(found)
    return {
        "mark": MARK,
        "verdicts": verdicts(found),
        "notes": found.notes,
        "table": table,
        "kinds": kinds_table(found),
        "costs": costs_table(found),
        "versions": versions_table(found),
        "runs": found.runs,
        "arguments": {m.name: _plain(m.manifest.arguments) for m in found.models if m.manifest},
        "charts": {name: Markup(svg) for name, svg in charts(found).items()},
        "maps": heat[:MAPS],
        "more_maps": len(heat) - MAPS,
        "data": data,
        "downloads": {
            "report.json": _address("application/json", _raw(found, data)),
            "report.csv": _address("text/csv", _csv([table.headers, *table.rows])),
        },
    }


def _plain(arguments: dict[str, Any]) -> str:
    """Arguments that were given a value, a line each."""
    return "\n".join(f"{name}: {value}" for name, value in arguments.items() if value is not None)


def _raw(found: Report, data: dict[str, Any]) -> str:
    """All numbers of the report; the curves as they are drawn."""
    models = []
    for model in found.models:
        row: dict[str, Any] = {key: getattr(model, key) for key in ("name", "role", "sparsity", "bytes", "packed")}
        row |= {"run": Path(model.run).name, "scores": asdict(model.scores) if model.scores else None}
        made = model.manifest
        row |= {"seconds": made.seconds, "peak_memory_bytes": made.peak, "arguments": made.arguments} if made else {}
        models.append(row)
    alike: dict[Any, list[str]] = {}
    for model in found.models:
        alike.setdefault(model.cells, []).append(model.name)
    zeros = [{"models": names, "cells": [astuple(cell) for cell in cells]} for cells, names in alike.items() if cells]
    figures = data | {"zeros": {"columns": [field.name for field in fields(Cell)], "maps": zeros}}
    return json.dumps({"models": models, "figures": figures, "verdicts": verdicts(found)}, default=str)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([[printable(cell) for cell in row] for row in rows])
    return file.getvalue()


def _address(kind: str, text: str) -> Markup:
    return Markup(f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}")


def _page(facts: dict[str, Any], cards: Gallery) -> str:
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup((HERE / "page.css").read_text(encoding="utf-8")), "script": Markup(script), "digest": digest}
    return _template("page.html.j2", finalize=_shown, autoescape=True).render(**facts, **own, gallery=cards)


def _template(name: str, **options: Any) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(HERE)
    strict = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    made = jinja2.Environment(loader=loader, **strict, **options)  # type: ignore[arg-type]
    made.filters["lines"] = lambda text: Markup("\n").join(escape(printable(line)) for line in text.splitlines())
    made.filters["indented"] = lambda text: Markup("\n".join(f"    {printable(line)}" for line in text.splitlines()))
    return made.get_template(name)


def _shown(value: Any) -> Any:
    """Text of data and models on the page: on one line, with nothing in it that cannot be seen; jinja2 escapes it."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _markdown(value: Any) -> Any:
    """The same in markdown: no letter of it is markup."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(f"\\{letter}" if letter in SPECIAL else letter for letter in printable(value))
