"""Model folders, runs, comparisons and scores, found below the folders that a report is asked of: one plain structure.

Reads JSON, and the safetensors for their zeros. Nothing is loaded as a model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ressa.errors import RessaError
from ressa.files.paths import path_of
from ressa.reporting.page.made import (
    Manifest,
    Scores,
    read_answers,
    read_blocks,
    read_manifest,
    read_scores,
)
from ressa.reporting.stored import BLOCK, Count, counts, folder_of, matched, read_object, size_of

DEEP = 3  # folders below the one that is named, where runs are looked for
VERBS = {"prune": "pruned", "repair": "repaired"}  # what they make
INNER = re.compile(r"(?<=\.)\d+(?=\.)")  # the number of an expert


@dataclass(frozen=True)
class Cell:
    """Zeros of one kind of matrix in one block, counted: of several experts together."""

    part: str
    stack: str
    block: int
    matrix: str
    zeros: int
    weights: int


@dataclass(frozen=True)
class Model:
    """One row of the report: what is known of one model. `run` is the folder it was found in."""

    name: str
    run: str
    role: str  # dense, pruned, repaired, or the name of a method
    source: str
    manifest: Manifest | None = None
    scores: Scores | None = None
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    bytes: int | None = None
    packed: int | None = None

    @property
    def scored(self) -> Scores:
        """`scores`, of a model that was scored."""
        assert self.scores is not None
        return self.scores

    @cached_property
    def asked(self) -> tuple[Any, ...] | None:
        """What has to be equal for two scores to be compared; None without scores."""
        if self.scores is None:
            return None
        questions = hash(tuple(sorted((ident, row["question"]) for ident, row in self.answers.items())))
        return self.scores.task, self.scores.split, self.scores.n, self.scores.metric, questions

    @property
    def zeros(self) -> int:
        return sum(cell.zeros for cell in self.cells)

    @property
    def weights(self) -> int:
        return sum(cell.weights for cell in self.cells)

    @property
    def sparsity(self) -> float | None:
        """Share of zeros in the pruned matrices; of a dense model 0, None where nothing is known."""
        if self.cells:
            return self.zeros / self.weights
        return 0.0 if self.role == "dense" else None

    def part(self, name: str) -> float | None:
        weights = sum(cell.weights for cell in self.cells if cell.part == name)
        return sum(c.zeros for c in self.cells if c.part == name) / weights if weights else None


@dataclass(frozen=True)
class Run:
    """A folder that `ressa run` or `ressa compare` made: what repeats it."""

    name: str
    folder: Path
    recipe: str | None


@dataclass
class Report:
    """Everything the page shows."""

    models: list[Model]
    runs: list[Run]
    notes: list[str] = field(default_factory=list)

    def asked_alike(self) -> list[Model]:
        """The most models that were asked the same questions (of equals those with the most), dense first."""
        scored = [model for model in self.models if model.scores]
        sets = [[other for other in scored if comparable(model, other)] for model in scored]
        most = max(sets, key=lambda one: (len(one), one[0].scored.n), default=[])
        return sorted(most, key=lambda model: model.role != "dense")

    def dense(self, model: Model) -> Model | None:
        """The dense model that was asked the same questions: of the same run, else any."""
        same = [one for one in self.models if one.role == "dense" and comparable(one, model)]
        return next((one for one in same if one.run == model.run), same[0] if same else None)

    def pruned(self, model: Model) -> Model | None:
        """What a repaired model was repaired from: the folder that its ressa.json names, else that of its run."""
        if model.role != "repaired" or model.manifest is None:
            return None
        found = [one for one in self.models if one.role == "pruned"]
        source = os.path.realpath(str(model.manifest.arguments.get("pruned", "")))
        named = [one for one in found if os.path.realpath(one.source) == source]
        return next(iter([*named, *(one for one in found if one.run == model.run)]), None)


def comparable(one: Model, other: Model) -> bool:
    """Whether two models were asked the same questions, and are scored by the same metric."""
    return one.asked is not None and one.asked == other.asked


def collect(folders: Sequence[str | Path]) -> Report:
    """What `folders` hold: model folders, folders of `ressa run`, `compare` and `evaluate --out`, or of many of them.

    Raises:
        RessaError: a folder that is not there or holds nothing of ressa, and files that are not what ressa writes.
    """
    if not folders:
        raise RessaError("report: name at least one folder: of a model, a run, or a comparison")
    report = Report([], [])
    for named in folders:
        folder = path_of(named, "the folder")
        if not folder.is_dir():
            raise RessaError(f"{folder}: no such folder; name one of a model, a run, or a comparison")
        found = list(_found(folder, DEEP))
        if not found:
            raise RessaError(f"{folder}: nothing of ressa in it (no ressa.json, no scores.json, no stages of a run)")
        for one in found:
            _add(report, one)
    return _named(report)


def _found(folder: Path, deep: int) -> Iterator[Path]:
    """Folders that `_add` reads; what lies inside of one is part of it."""
    if _roles(folder) or any((folder / name).is_file() for name in ("ressa.json", "scores.json", "config.json")):
        yield folder
    elif deep:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield from _found(below, deep - 1)


def _roles(folder: Path) -> list[str]:
    """The models of a folder of `run` or `compare`, by the names they have there; [] for any other folder."""
    if not (folder / "stages").is_dir() and not (folder / "run.json").is_file():  # the latter until version 0.1
        return []
    found = [path.parent.name for path in sorted(folder.glob("*/ressa.json"))]
    found += [path.parent.name for path in sorted(folder.glob("scores/*/scores.json"))]
    order = ["dense", *VERBS.values(), *read_object(folder / "compare.json").get("methods", {})]
    return sorted(dict.fromkeys(found), key=lambda name: order.index(name) if name in order else len(order))


def _add(report: Report, folder: Path) -> None:
    if roles := _roles(folder):
        methods = read_object(folder / "compare.json").get("methods", {})
        recipe = folder / "recipe.yaml"
        text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None
        report.runs.append(Run(folder.absolute().name, folder, text))
        for role in roles:
            places = folder / role, folder / "scores" / role
            report.models.append(_model(folder, role, *places, report.notes, method=role in methods))
    elif (folder / "scores.json").is_file() and not (folder / "config.json").is_file():
        scores = read_scores(folder)
        source = folder_of(scores.model if scores else "")
        report.models.append(_model(folder.parent, folder.absolute().name, source, folder, report.notes))
    else:
        report.models.append(_model(folder.parent, folder.absolute().name, folder, folder, report.notes))


def _model(run: Path, role: str, folder: Path, scored: Path, notes: list[str], *, method: bool = False) -> Model:
    """One model of a run; that of `scores/dense` lies where its scores say."""
    scores = read_scores(scored)
    if role == "dense" and scores:
        folder = folder_of(scores.model)
    manifest = read_manifest(folder)
    if not method:
        role = VERBS.get(manifest.command if manifest else "", "dense")
    stored = counts(folder) if folder.is_dir() else {}
    cells = _cells(manifest, stored, folder, notes) if manifest else ()
    size = size_of(folder) if stored else None
    packed = None if size is None else size - _saved(manifest, stored)
    source = scores.model if role == "dense" and scores else str(folder)
    answers, blocks = read_answers(scored), read_blocks(scored)
    return Model(folder.absolute().name, str(run), role, source, manifest, scores, answers, blocks, cells, size, packed)


def _cells(manifest: Manifest, stored: dict[str, Count], folder: Path, notes: list[str]) -> tuple[Cell, ...]:
    """Zeros by block and kind of matrix: counted in the files, else as ressa.json says."""
    matrices = manifest.matrices
    counted = matched({name: one.weights for name, one in matrices.items()}, stored)
    if matrices and not counted:
        notes.append(f"{folder}: its files hold the matrices in another cut, so zeros are those that ressa.json tells.")
    zeros = {name: counted[name].zeros if counted else one.zeros for name, one in matrices.items()}
    if changed := [name for name, one in matrices.items() if zeros[name] != one.zeros]:
        notes.append(
            f"{folder}: {changed[0]} and {len(changed) - 1} more have other zeros on disk than ressa.json tells; "
            "the page shows those on disk."
        )
    sums: dict[tuple[str, str, int, str], tuple[int, int]] = {}
    for name, one in matrices.items():
        cut = BLOCK.fullmatch(name)
        key = (one.part, cut[1], int(cut[2]), INNER.sub("*", cut[3])) if cut else (one.part, name, 0, "weight")
        had = sums.get(key, (0, 0))
        sums[key] = (had[0] + zeros[name], had[1] + one.weights)
    return tuple(Cell(*key, *counts) for key, counts in sums.items())


def _saved(manifest: Manifest | None, stored: dict[str, Count]) -> int:
    """Bytes that pruned matrices would save if they kept their values and one bit a weight: arithmetic, no file."""
    names = {name: one.weights for name, one in manifest.matrices.items()} if manifest else {}
    saved = (c.bytes * c.zeros / c.weights - c.weights / 8 for c in matched(names, stored).values())
    return sum(max(0, int(one)) for one in saved)


def _named(report: Report) -> Report:
    """Names that tell models apart; a dense model that several runs scored alike comes once."""
    kept: list[Model] = []
    for model in report.models:
        if not any(_same_dense(model, other) for other in kept) and not _scored_elsewhere(model, report.models):
            kept.append(model)
    single = len({model.run for model in kept}) == 1
    dense = sum(model.role == "dense" for model in kept)
    names: dict[str, int] = {}
    report.models = []
    for model in kept:
        if model.role == "dense":
            name = f"dense ({model.scores.n:,} asked)" if dense > 1 and model.scores else "dense"
        else:
            name = model.name if single else f"{Path(model.run).absolute().name}: {model.name}"
        names[name] = names.get(name, 0) + 1
        report.models.append(replace(model, name=name if names[name] == 1 else f"{name} ({names[name]})"))
    return report


def _same_dense(one: Model, other: Model) -> bool:
    """Whether two runs asked the same dense model the same questions, and got the same answers."""
    alike = one.role == other.role == "dense" and one.source == other.source and comparable(one, other)
    return alike and [r["answer"] for r in one.answers.values()] == [r["answer"] for r in other.answers.values()]


def _scored_elsewhere(one: Model, models: Sequence[Model]) -> bool:
    """Whether a folder without scores comes again with those of an `evaluate --out`."""
    twins = (m for m in models if m.scores and os.path.realpath(m.source) == os.path.realpath(one.source))
    return one.scores is None and any(twins)
