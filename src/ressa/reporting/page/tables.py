"""The tables of the report, as text: the page and its markdown twin print the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ressa.reporting.page.collect import Cell, Model, Report
from ressa.reporting.page.numbers import method, metric_name, pattern

MAPS = 4  # heat maps on the page


@dataclass(frozen=True)
class Table:
    """`rows` of text under `headers`; all columns but those named in `words` are numbers."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str]


@dataclass(frozen=True)
class Stack:
    """Blocks of one part: a row a block, a column a kind of matrix, (zeros, weights) in each."""

    part: str
    name: str
    matrices: list[str]
    rows: list[tuple[int, list[float | None], float]]


@dataclass(frozen=True)
class Map:
    """Where the zeros are, of models that have the same number in every matrix."""

    models: list[str]
    stacks: list[Stack]


def models_table(report: Report) -> Table:
    """One row a model."""
    scales = list(dict.fromkeys(metric_name(model.scores.metric) for model in report.models if model.scores))
    parts = list(dict.fromkeys(cell.part for model in report.models for cell in model.cells))
    several = len({model.scores.n for model in report.models if model.scores}) > 1
    headers = ["model", *(column for scale in scales for column in (f"{scale} (%)", "95 % interval"))]
    divergences = any(model.scores and model.scores.kl is not None for model in report.models)
    headers += [*(["KL to dense"] if divergences else []), *(["questions"] if several else []), "method", "pattern"]
    headers += [*(f"{part} zeros (%)" for part in parts), "on disk (MB)", "packed (MB)", "made in (s)"]
    rows = []
    for model in report.models:
        scores = model.scores
        row = [model.name, *(text for scale in scales for text in _score(model, scale))]
        row += [f"{scores.kl:.3f}" if scores and scores.kl is not None else ""] if divergences else []
        row += [f"{scores.n:,}" if scores else ""] if several else []
        row += [method(model) + (" + repair" if model.role == "repaired" else ""), pattern(model)]
        row += [_percent(0.0 if model.role == "dense" else model.part(part)) for part in parts]
        rows.append([*row, _mega(model.bytes), _mega(model.packed), _made(model)])
    return Table("Every model of this report", headers, rows, ("model", "method", "pattern"))


def kinds_table(report: Report) -> Table | None:
    """The task's own score per kind of question, a column a model; None if there are no two kinds."""
    models = report.asked_alike()
    kinds = {kind: n for model in models for kind, (n, _) in model.scored.kinds.items()}
    if len(kinds) < 2:
        return None
    rows = [
        [kind, f"{n:,}", *(_percent(model.scored.kinds.get(kind, (0, None))[1]) for model in models)]
        for kind, n in kinds.items()
    ]
    caption = f"{metric_name(models[0].scored.metric)} (%) by kind of question"
    return Table(caption, ["kind", "questions", *(model.name for model in models)], rows, ("kind",))


def costs_table(report: Report) -> Table:
    """What making and asking each model took, and where."""
    rows = []
    for model in report.models:
        if made := model.manifest:
            where = [made.machine.get(key, "") for key in ("device", "compute", "processor", "threads")]
            peak = f"{made.peak / 1e6:,.0f}" if made.peak else ""
            row = [made.command, *where, _made(model), peak]
        else:
            row = [""] * 7
        rows.append([model.name, *row, f"{model.scores.seconds:.1f}" if model.scores else ""])
    words = ["model", "made by", "device", "computed in", "processor"]
    headers = [*words, "threads", "made in (s)", "peak memory (MB)", "asked in (s)"]
    return Table("Time and memory", headers, rows, words)


def versions_table(report: Report) -> Table:
    """Versions of what wrote the models; several where they differ."""
    found: dict[str, list[str]] = {}
    for model in report.models:
        for name, version in (model.manifest.versions if model.manifest else {}).items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    headers = ["package", "version"]
    return Table("Versions", headers, [[name, ", ".join(versions)] for name, versions in found.items()], headers)


def maps(report: Report) -> list[Map]:
    """Where the zeros are: one map for all models whose matrices hold the same numbers of them."""
    alike: dict[tuple[Cell, ...], list[str]] = {}
    for model in report.models:
        if model.cells:
            alike.setdefault(model.cells, []).append(model.name)
    return [Map(names, _stacks(cells)) for cells, names in alike.items()]


def _stacks(cells: Sequence[Cell]) -> list[Stack]:
    found = []
    for part, stack in dict.fromkeys((cell.part, cell.stack) for cell in cells):
        mine = [cell for cell in cells if (cell.part, cell.stack) == (part, stack)]
        names = list(dict.fromkeys(cell.matrix for cell in mine))
        rows = []
        for block in sorted({cell.block for cell in mine}):
            held = {cell.matrix: cell for cell in mine if cell.block == block}
            shares = [held[name].zeros / held[name].weights if name in held else None for name in names]
            together = sum(c.zeros for c in held.values()) / sum(c.weights for c in held.values())
            rows.append((block, shares, together))
        short = [name.rsplit(".", 1)[-1] for name in names]
        found.append(Stack(part, stack, short if len(set(short)) == len(short) else names, rows))
    return found


def _score(model: Model, scale: str) -> list[str]:
    scores = model.scores
    if scores is None or metric_name(scores.metric) != scale:
        return ["", ""]
    sure = scores.intervals.get(scores.metric)
    return [_percent(scores.score), f"{100 * sure[0]:.1f} to {100 * sure[1]:.1f}" if sure else ""]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _mega(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.1f}"


def _made(model: Model) -> str:
    return f"{model.manifest.seconds:,.1f}" if model.manifest else ""
