"""What a study came to, as one tidy table: a row for each cell, model and measurement.

A cell's own rows stand in results.json of its folder, so that the table is put together without a model. Intervals are
95 %: those of scores, and paired ones for the difference between two models on the same questions.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ressa.errors import unknown
from ressa.evaluation.summary import paired
from ressa.files.locks import waiting
from ressa.files.text import read_json, write_atomic
from ressa.model.folder import prunable_weights, read_manifest
from ressa.model.load import resolve
from ressa.pipeline.run import models
from ressa.pipeline.study import MEASURED, Cell, Study

RESULTS, TABLE = "results.json", "results"
COLUMNS = ("cell", "status", "role", "measurement", "value", "low", "high")
VERSUS = " minus "  # in the name of a difference between two models of a cell

Row = dict[str, Any]


def results(study: Study) -> list[Row]:
    """The table: {cell, status (finished, failed, unfinished), role (dense, pruned, repaired), measurement, value, low,
    high, every changed key, error}. A cell that is not finished has one row, without a measurement."""
    return [row for cell in study.cells for row in _rows(study, cell)]


def _rows(study: Study, cell: Cell) -> Iterator[Row]:
    columns = {name: cell.columns.get(name) for name in study.columns}
    blank: Row = {"cell": cell.name, **dict.fromkeys(COLUMNS[1:]), **columns, "error": None}
    rows = read_json(cell.folder / RESULTS)
    if rows is None:
        file = cell.folder / "error.txt"
        error = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        yield blank | {"status": "failed" if error else "unfinished", "error": error}
        return
    for row in rows:
        if row["measurement"].partition(VERSUS)[0] in study.measure:
            yield blank | {"status": "finished"} | row


def write_results(cell: Cell) -> None:
    """Everything that was measured of a finished cell, into its folder."""
    rows = [row for role, model in models(cell.recipe).items() for row in _measured(cell, role, model)]
    write_atomic(cell.folder / RESULTS, json.dumps(rows, indent=1) + "\n")


def _measured(cell: Cell, role: str, model: str) -> Iterator[Row]:
    for name, value in (_cost(model) | _sparsity(cell.recipe.model, model)).items():
        yield _row(role, name, value)
    folder = cell.folder / "scores"
    if not (scores := read_json(folder / role / "scores.json")):
        return
    for name in dict.fromkeys((*scores["metrics"], "kl", "perplexity")):
        if scores.get(name) is not None:
            yield _row(role, name, scores[name], *scores["intervals"].get(name, ()))
    if role == "pruned" and "dense_perplexity" in scores:  # what the dense model was asked along with this one
        yield _row("dense", "perplexity", scores["dense_perplexity"], *scores["intervals"]["dense_perplexity"])
    yield _row(role, "evaluation_seconds", scores["seconds"])
    for other in {"pruned": ("dense",), "repaired": ("pruned", "dense")}.get(role, ()):
        for name, pair in paired(folder / role, folder / other).items():
            yield _row(role, f"{name}{VERSUS}{other}", pair["difference"], *pair["interval"])


def _row(role: str, name: str, value: float, low: float | None = None, high: float | None = None) -> Row:
    return {"role": role, "measurement": name, "value": value, "low": low, "high": high}


def _cost(model: str) -> dict[str, float]:
    """Of making the model, and its size on disk; nothing is known of one on the hub."""
    folder = Path(resolve(model))
    if not folder.is_dir():
        return {}
    manifest = read_manifest(folder) or {}
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {name: manifest[name] for name in ("seconds", "peak_memory_bytes") if name in manifest} | {"bytes": size}


def _sparsity(dense: str, model: str) -> dict[str, float]:
    """Zeros over prunable weights, of each part and of vision and language together, be they pruned or not."""
    parts = (read_manifest(resolve(model)) or {}).get("parts", {}) if model != dense else {}
    weights, zeros = _weights(dense), {part: counts["zeros"] for part, counts in parts.items()}
    counted = [part for part in weights if part != "connector" or zeros.get(part)]
    together = sum(zeros.get(part, 0) for part in counted) / sum(weights[part] for part in counted)
    own = {f"sparsity_{part}": zeros.get(part, 0) / n for part, n in weights.items() if n}
    return {"sparsity": together} | own


@cache
def _weights(model: str) -> Mapping[str, int]:
    return prunable_weights(model)


def write_table(study: Study) -> None:
    """results.csv and results.parquet in the study's folder, of what is finished by now."""
    with waiting(study.out / "locks" / "table.lock"):  # or one with fewer cells could come last
        rows, header = results(study), [*COLUMNS, *study.columns, "error"]
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(study.out / f"{TABLE}.csv", file.getvalue())
        _write_parquet(study, rows, header)


def _write_parquet(study: Study, rows: list[Row], header: list[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    numbers = {"value", "low", "high"}
    kinds = {name: pyarrow.float64() if name in numbers else _kind(name, rows) for name in header}
    texts = [
        {name: value if value is None or kinds[name] != pyarrow.string() else str(value) for name, value in row.items()}
        for row in rows
    ]
    partial = study.out / f".{TABLE}.partial"
    parquet.write_table(pyarrow.Table.from_pylist(texts, schema=pyarrow.schema(list(kinds.items()))), partial)
    os.replace(partial, study.out / f"{TABLE}.parquet")


def _kind(name: str, rows: list[Row]) -> Any:
    """Whole numbers or numbers, where a column holds nothing else; else texts."""
    import pyarrow

    seen = {type(row[name]) for row in rows if row[name] is not None}
    kinds = (({int}, pyarrow.int64()), ({int, float}, pyarrow.float64()), ({bool}, pyarrow.bool_()))
    return next((kind for among, kind in kinds if seen and seen <= among), pyarrow.string())


def check_measure(study: Study, rows: list[Row]) -> None:
    """Raises RessaError if the study asks for what nothing was measured of, by that name."""
    done = [cell for cell in study.cells if (cell.folder / RESULTS).is_file()]
    known = {row["measurement"] for cell in done for row in read_json(cell.folder / RESULTS, [])}
    known = {name.partition(VERSUS)[0] for name in known} | set(MEASURED)
    for name in study.measure:
        if done and name not in known:
            raise unknown("measurement", str(name), known)
