"""The numbers behind every figure of the page, as tidy rows; and what they come to in a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from ressa.reporting.page.collect import Model, Report

Rows = list[dict[str, Any]]
POINTS = 200  # of a loss curve
METHODS = {"wanda": "Wanda", "sparsegpt": "SparseGPT", "admm": "ADMM", "alps": "ALPS", "ria": "RIA", "dsnot": "DSnoT"}
METRICS = {"vqa_accuracy": "VQA accuracy", "cider": "CIDEr", "f1": "F1"}
SENTENCES = 8
FEWEST = 30  # questions that an interval of a difference is given for


def figure_data(report: Report) -> dict[str, Rows]:
    """{figure: rows}: `accuracy` (against sparsity and bytes), `zeros`, `blocks`, `loss`, `kinds`.

    Scores are of the models that were asked the same questions (`Report.asked_alike`).
    """
    alike = report.asked_alike()
    return {
        "accuracy": [_accuracy(model) for model in alike],
        "kinds": [
            {"model": model.name, "kind": kind, "n": n, "score": score}
            for model in alike
            for kind, (n, score) in model.scored.kinds.items()
        ],
        "zeros": [{"model": model.name, **vars(cell)} for model in report.models for cell in model.cells],
        "blocks": [
            {"model": model.name, "block": block, "error": error}
            for model in report.models
            for block, error in model.blocks.items()
        ],
        "loss": [{"model": m.name, "step": step, "loss": loss} for m in report.models for step, loss in _thinned(m)],
    }


def _accuracy(model: Model) -> dict[str, Any]:
    scores = model.scores
    assert scores is not None
    low, high = scores.intervals.get(scores.metric, (None, None))
    row = {"model": model.name, "series": series(model), "metric": scores.metric, "score": scores.score}
    return row | {"low": low, "high": high, "sparsity": model.sparsity, "bytes": model.bytes, "packed": model.packed}


def _thinned(model: Model) -> list[tuple[int, float]]:
    """At most `POINTS` of the loss's, the first and the last among them."""
    loss = model.manifest.loss if model.manifest else []
    if len(loss) <= POINTS:
        return loss
    return [loss[i * (len(loss) - 1) // (POINTS - 1)] for i in range(POINTS)]


def series(model: Model) -> str:
    """What a model has in common with those it is joined to by a line: N:M is no point of a curve over sparsities."""
    if model.role == "dense":
        return "dense"
    pruning = model.manifest.pruning if model.manifest else {}
    kind = " N:M" if ":" in str(pruning.get("sparsity", "")) else ""
    return f"{method(model)}{kind}{' + repair' if model.role == 'repaired' else ''}"


def method(model: Model) -> str:
    """The pruning method's name as papers write it."""
    name = str((model.manifest.pruning if model.manifest else {}).get("method", ""))
    return METHODS.get(name, name)


def metric_name(metric: str) -> str:
    return METRICS.get(metric, metric.replace("_", " "))


def pattern(model: Model) -> str:
    return str((model.manifest.pruning if model.manifest else {}).get("sparsity", ""))


def verdicts(report: Report) -> list[str]:
    """What each pruned model lost and repair regained, in a sentence each, the first of the report first."""
    sentences = list(_verdicts(report))
    if len(sentences) > SENTENCES:
        sentences = [*sentences[:SENTENCES], f"The tables have {len(sentences) - SENTENCES} more."]
    return sentences or [f"{len(report.models)} models; none was scored beside its dense original."]


def _verdicts(report: Report) -> Iterator[str]:
    runs: dict[str, list[Model]] = {}
    for model in report.models:
        if model.role != "dense":
            runs.setdefault(model.run, []).append(model)
    for models in runs.values():
        methods = [model for model in models if model.role not in ("pruned", "repaired") and report.dense(model)]
        dense = report.dense(methods[0]) if len(methods) > 1 else None
        if dense:
            yield _ranking(methods, dense)
        for model in models:
            if model not in methods or len(methods) == 1:
                yield from _sentence(model, report)


def _sentence(model: Model, report: Report) -> Iterator[str]:
    repaired = next((one for one in report.models if report.pruned(one) is model), None)
    if report.pruned(model) is not None and report.dense(model) is not None:
        return  # said with the pruned one
    dense = report.dense(model)
    what = f"{pattern(model)} by {method(model)}" if method(model) else model.name
    if dense is None:
        share = f"{model.sparsity:.1%} of {model.weights:,} pruned weights are zero" if model.cells else "nothing known"
        yield f"{what} ({model.name}): {share}; not scored beside its dense original."
        return
    cost = _cost(model, dense)
    yield f"{what} {cost}{_regained(repaired, model, dense) if repaired and repaired.scores else ''}."


def _cost(model: Model, dense: Model) -> str:
    lost, scale = 100 * (dense.scored.score - model.scored.score), metric_name(model.scored.metric)
    between = f", {dense.scored.score:.1%} → {model.scored.score:.1%}"
    if lost <= 0:
        return f"costs no {scale}{between}"
    return f"costs {lost:.1f}{_paired(dense, model)} points of {scale}{between}"


def _regained(repaired: Model, model: Model, dense: Model) -> str:
    lost, gained = dense.scored.score - model.scored.score, repaired.scored.score - model.scored.score
    zeros = "at the same zeros" if repaired.zeros == model.zeros else f"with {repaired.sparsity:.1%} zeros"
    if gained <= 0:
        return f"; repair regains nothing ({repaired.scored.score:.1%})"
    if lost <= 0:
        return f"; repair adds {100 * gained:.1f} points {zeros}"
    return f"; repair regains {gained / lost:.0%} of it {zeros} ({repaired.scored.score:.1%})"


def _ranking(models: list[Model], dense: Model) -> str:
    best = sorted((m for m in models if m.scores), key=lambda m: -m.scored.score)
    scale = metric_name(dense.scored.metric)
    lost = [f"{method(m)} {100 * (dense.scored.score - m.scored.score):.1f}" for m in best]
    return f"At {pattern(best[0])}, points of {scale} lost from {dense.scored.score:.1%}: {', '.join(lost)}."


def _paired(dense: Model, model: Model) -> str:
    """The 95 % interval of the difference on the same questions, in points; "" where answers have no score alone.

    By the normal approximation: mean +- 1.96 standard errors of the paired differences.
    """
    name = model.scored.metric
    pairs = [(dense.answers[i].get(name), row.get(name)) for i, row in model.answers.items() if i in dense.answers]
    lost = [100 * (ours - theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    if len(lost) < FEWEST or len(lost) < model.scored.n:
        return ""
    middle, half = statistics.fmean(lost), 1.96 * statistics.stdev(lost) / len(lost) ** 0.5
    if abs(middle - 100 * (dense.scored.score - model.scored.score)) > 1e-4:  # no mean of the answers' scores
        return ""
    return f" ({middle - half:.1f} to {middle + half:.1f})"
