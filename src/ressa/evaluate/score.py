"""The verb `evaluate`: answer a split, score it per kind of question, compare it with the dense model."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ressa.data.images import GreyImage
from ressa.data.prompts import prompt_text
from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.evaluate.divergence import answer_kl
from ressa.evaluate.generate import Progress, answers, settings
from ressa.evaluate.vqa import exact_match, vqa_accuracy
from ressa.model.folder import check_writable
from ressa.model.load import load

Model = str | Path | tuple[Any, Any]


def evaluate(
    model: Model,
    *,
    data: str | Path | Any,
    split: str = "test",
    against: Model | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    out: str | Path | None = None,
    grey: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model's greedy answers to a split.

    Args:
        model: a model folder or name, or a loaded (model, processor).
        data: what `read_records` reads.
        against: the dense model, for `kl`: the mean over answer tokens of KL(dense || model), in nats.
        limit: score this many records only, drawn at random (always the same ones).
        max_new_tokens: where an answer is cut off.
        out: a folder for scores.json, answers.jsonl (question, references and answer of each record) and
            answers.cache.jsonl (a killed run goes on from there).
        grey: show a plain grey picture of the same size instead of each picture: how much can be guessed.

    Returns:
        exact_match and vqa_accuracy (0 to 1), kl (None without `against`), n, by_kind {kind: the same four}, prompt
        (of the first record), settings, seconds, versions; `answers` {record id: answer}, which scores.json leaves out.

    Raises:
        RessaError: anything wrong with the data, the models, the output folder or a number.
    """
    started = time.monotonic()
    if batch_size < 1 or max_new_tokens < 1 or (limit is not None and limit < 1):
        raise RessaError("batch size, longest answer and limit must each be at least 1")
    records = _chosen(read_records(data, split), limit, grey)
    folder = _writable(out)
    net, processor = _loaded(model, device)
    dense = _loaded(against, device)[0] if against is not None else None
    cache = folder / "answers.cache.jsonl" if folder else None
    said = answers(net, processor, records, cache, batch_size, max_new_tokens, progress)
    rows = [_row(record, said[record.id]) for record in records]
    if dense is not None:
        pairs = answer_kl(net, dense, processor, records, batch_size, progress)
        rows = [row | {"kl": kl, "tokens": tokens} for row, (kl, tokens) in zip(rows, pairs, strict=True)]
    told: dict[str, Any] = {"model": _name(model), "against": against and _name(against), "split": split, "grey": grey}
    told |= {"data": str(data) if isinstance(data, str | Path) else type(data).__name__}
    told |= {"prompt": prompt_text(processor, records[0])}
    told |= {"settings": settings(max_new_tokens) | {"batch_size": batch_size, "limit": limit}}
    scores = _scores(rows) | told | {"seconds": round(time.monotonic() - started, 2)}
    if folder:
        write_atomic(folder / "answers.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        write_atomic(folder / "scores.json", json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    return scores | {"answers": said}


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise RessaError(f"{path}: cannot be written ({error.strerror})") from None


def _chosen(records: list[Record], limit: int | None, grey: bool) -> list[Record]:
    if limit is not None and limit < len(records):
        records = [records[i] for i in sorted(random.Random(0).sample(range(len(records)), limit))]
    if grey:
        records = [replace(r, image=GreyImage(r.image)) if r.image else r for r in records]
    return records


def _writable(out: str | Path | None) -> Path | None:
    """The output folder, known to be possible before any weight is loaded; it is made when there is something in it."""
    if out is None:
        return None
    check_writable(out)
    return Path(out)


def _loaded(model: Model, device: str) -> tuple[Any, Any]:
    return model if isinstance(model, tuple) else load(model, device=device)


def _name(model: Model) -> str:
    return type(model[0]).__name__ if isinstance(model, tuple) else str(model)


def _row(record: Record, answer: str) -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": record.kind or ("caption" if record.caption else "question"),
        "question": record.question,
        "references": list(record.references),
        "answer": answer,
        "exact_match": exact_match(answer, record.references),
        "vqa_accuracy": vqa_accuracy(answer, record.references),
    }


def _scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kinds = sorted({row["kind"] for row in rows})
    by_kind = {kind: _summary([row for row in rows if row["kind"] == kind]) for kind in kinds}
    versions = {name: version(name) for name in ("ressa", "torch", "transformers")}
    return {**_summary(rows), "by_kind": by_kind, "versions": versions}


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over records; `kl` over tokens."""
    kl = sum(r["kl"] for r in rows) / max(sum(r["tokens"] for r in rows), 1) if "kl" in rows[0] else None
    means = {name: sum(r[name] for r in rows) / len(rows) for name in ("exact_match", "vqa_accuracy")}
    return {"n": len(rows), **means, "kl": kl}
