"""What one JSON file of a run says, with every value of the kind that the page counts on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ressa.errors import RessaError
from ressa.reporting.stored import read_object


@dataclass(frozen=True)
class Matrix:
    """One pruned matrix, as ressa.json counts it."""

    part: str
    weights: int
    zeros: int


@dataclass(frozen=True)
class Manifest:
    """A ressa.json. `before` is the pruned model's, of one that was repaired; `loss` is [(step, loss)]."""

    command: str
    arguments: dict[str, Any]
    matrices: dict[str, Matrix]
    loss: list[tuple[int, float]]
    seconds: float
    peak: int
    versions: dict[str, str]
    machine: dict[str, str]
    before: Manifest | None = None

    @property
    def pruning(self) -> dict[str, Any]:
        """The arguments of the pruning that set the zeros."""
        return self.before.pruning if self.before else self.arguments

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """(zeros, weights) of the pruned matrices of each part."""
        found: dict[str, tuple[int, int]] = {}
        for one in self.matrices.values():
            zeros, weights = found.get(one.part, (0, 0))
            found[one.part] = (zeros + one.zeros, weights + one.weights)
        return found


@dataclass(frozen=True)
class Scores:
    """A scores.json. The first of `values` is the task's own score; `kinds` is {kind: (questions, score or None)}."""

    task: str
    split: str | None
    data: str
    model: str
    n: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    kl: float | None
    perplexity: float | None
    kinds: dict[str, tuple[int, float | None]]
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        return next(iter(self.values))

    @property
    def score(self) -> float:
        return self.values[self.metric]


def read_manifest(folder: Path) -> Manifest | None:
    """Raises RessaError if ressa.json is not what ressa writes."""
    content = read_object(folder / "ressa.json")
    return _sound(folder / "ressa.json", lambda: _manifest(content)) if content else None


def read_scores(folder: Path) -> Scores | None:
    """Raises RessaError if scores.json is not what ressa writes."""
    content = read_object(folder / "scores.json")
    return _sound(folder / "scores.json", lambda: _scores(content)) if content else None


def read_answers(folder: Path) -> dict[str, dict[str, Any]]:
    """{record id: row} of answers.jsonl, {} without one. Raises RessaError if it is not what ressa writes."""
    path = folder / "answers.jsonl"
    if not path.is_file():
        return {}
    return _sound(
        path, lambda: {str(row["id"]): _answer(row) for row in map(json.loads, path.read_bytes().splitlines())}
    )


def read_blocks(folder: Path) -> dict[str, float]:
    """{block: error} of blocks.json, {} without one. Raises RessaError if it is not what ressa writes."""
    content = read_object(folder / "blocks.json")
    return _sound(folder / "blocks.json", lambda: {str(name): float(error) for name, error in content.items()})


def _sound(path: Path, read: Any) -> Any:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        what = f"{type(error).__name__}: {error}"
        raise RessaError(
            f"{path}: is not what ressa writes ({what}); make it again, or leave this folder out"
        ) from None


def _manifest(content: Mapping[str, Any]) -> Manifest:
    matrices = {
        str(name): Matrix(str(one["part"]), int(one["weights"]), int(one["zeros"]))
        for name, one in content.get("matrices", {}).items()
    }
    return Manifest(
        str(content.get("command", "")),
        {str(k): v for k, v in content.get("arguments", {}).items()},
        matrices,
        [(int(entry["step"]), float(entry["loss"])) for entry in content.get("history", [])],
        float(content.get("seconds") or 0),
        int(content.get("peak_memory_bytes") or 0),
        {str(k): str(v) for k, v in content.get("versions", {}).items()},
        {str(k): str(v) for k, v in content.get("machine", {}).items()},
        _manifest(content["before"]) if content.get("before") else None,
    )


def _scores(content: Mapping[str, Any]) -> Scores:
    metrics = content.get("metrics", ["exact_match"])
    values = {str(name): float(content[name]) for name in metrics}
    first = next(iter(values))
    kl, perplexity = content.get("kl"), content.get("perplexity")
    return Scores(
        str(content.get("task", "folder")),
        content.get("split") and str(content["split"]),
        str(content.get("data", "")),
        str(content.get("model", "")),
        int(content["n"]),
        values,
        {str(name): (float(low), float(high)) for name, (low, high) in content.get("intervals", {}).items()},
        None if kl is None else float(kl),
        None if perplexity is None else float(perplexity),
        {str(kind): (int(one["n"]), _number(one.get(first))) for kind, one in content.get("by_kind", {}).items()},
        float(content.get("seconds") or 0),
        dict(content.get("settings", {})),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """The row, its text as text and its scores as numbers."""
    texts = {
        "kind": str(row.get("kind") or ""),
        "question": str(row.get("question") or ""),
        "answer": str(row["answer"]),
    }
    own = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    return own | texts | {"references": [str(one) for one in row.get("references", [])]}
