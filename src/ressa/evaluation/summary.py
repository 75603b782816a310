"""From answers to scores: overall with intervals, by kind, beside another model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ressa.errors import RessaError
from ressa.files.paths import path_of
from ressa.tasks.base import Sample, Task
from ressa.tasks.metrics.intervals import Measured, compared, interval

Sums = Sequence[tuple[float, float, float, int]]  # of `divergence.own_sums` and `compared`


def kind_of(sample: Sample) -> str:
    """What `by_kind` groups by."""
    return sample.record.kind or ("caption" if sample.record.caption else "question")


def rows(
    samples: Sequence[Sample], answers: Sequence[str], measured: dict[str, Measured], sums: Sums | None, dense: bool
) -> list[dict[str, Any]]:
    """One row a sample for answers.jsonl: question, references, answer and every score that is the sample's own."""
    own = {n: m.rows[:, 0] for n, m in measured.items() if m.rows.shape == (len(samples), 1) and not m.of}
    found = []
    for i, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        record = sample.record
        row: dict[str, Any] = {"id": record.id, "kind": kind_of(sample), "question": record.question}
        row |= {"references": list(record.references), "answer": answer}
        row |= {"choices": list(sample.choices)} if sample.choices else {}
        row |= {name: float(values[i]) for name, values in own.items()}
        if sums is not None:
            kl, nll, _, tokens = sums[i]
            row |= ({"kl": kl} if dense else {}) | {"nll": nll, "tokens": tokens}
        found.append(row)
    return found


def scores(
    task: Task,
    samples: Sequence[Sample],
    answers: Sequence[str],
    measured: dict[str, Measured],
    sums: Sums | None,
    dense: bool,
) -> dict[str, Any]:
    """{n, each metric, kl, perplexity, metrics: their names, intervals, by_kind, by: {breakdown: ...}}."""
    found = _summary(samples, measured, sums, dense)
    sure = measured | _divergences(sums, dense)
    found |= {"metrics": list(measured)}
    found |= {"intervals": {name: list(interval(m)) for name, m in sure.items() if m.fixed is None}}
    names = dict.fromkeys(name for sample in samples for name in sample.kinds)
    groups = {name: [sample.kinds.get(name, "none") for sample in samples] for name in names}
    by = {name: _by(task, labels, samples, answers, sums, dense) for name, labels in groups.items()}
    own = [kind_of(sample) for sample in samples]
    return found | {"by_kind": _by(task, own, samples, answers, sums, dense)} | ({"by": by} if by else {})


def _by(
    task: Task, labels: Sequence[str], samples: Sequence[Sample], answers: Sequence[str], sums: Sums | None, dense: bool
) -> dict[str, Any]:
    found = {}
    for label in sorted(set(labels)):
        where = [i for i, one in enumerate(labels) if one == label]
        mine = [samples[i] for i in where]
        measured = task.measure(mine, [answers[i] for i in where])
        found[label] = _summary(mine, measured, [sums[i] for i in where] if sums is not None else None, dense)
    return found


def _summary(
    samples: Sequence[Sample], measured: dict[str, Measured], sums: Sums | None, dense: bool
) -> dict[str, Any]:
    found = {"n": len(samples), **{name: m.value for name, m in measured.items()}, "kl": None}
    return found | {name: m.value for name, m in _divergences(sums, dense).items()}


def _divergences(sums: Sums | None, dense: bool) -> dict[str, Measured]:
    """KL to the dense model and perplexities, over tokens."""
    if sums is None:
        return {}
    rows = np.array(sums, dtype=float)

    def per_token(column: int, of: Any) -> Measured:
        return Measured(rows, lambda means: of(means[..., column] / np.maximum(means[..., 3], 1e-9)))

    found = {"perplexity": per_token(1, np.exp)}
    if dense:
        found = {"kl": per_token(0, np.positive)} | found | {"dense_perplexity": per_token(2, np.exp)}
    return found


def versus(task: Task, samples: Sequence[Sample], measured: dict[str, Measured], folder: str | Path) -> dict[str, Any]:
    """Each metric beside that of another model's answers, which an evaluation of the same task left in `folder`.

    Raises:
        RessaError: as `answers_to`.
    """
    other = task.measure(samples, answers_to(samples, folder))
    pairs = {name: (m, other[name]) for name, m in measured.items() if m.fixed is None and name in other}
    return {"folder": str(Path(folder))} | {name: compared(a, b) for name, (a, b) in pairs.items()}


def paired(folder: str | Path, other: str | Path) -> dict[str, Any]:
    """As `versus`, from the files that two evaluations left, of every score that is each question's own.

    Raises:
        RessaError: as `read_answers`, or they were asked different questions.
    """
    ours, theirs = (_read_rows(one) for one in (folder, other))
    if ours.keys() != theirs.keys():
        raise RessaError(f"{folder} and {other}: were asked different questions; evaluate both on the same")
    first = next(iter(ours.values()), {})
    names = [n for n, v in first.items() if type(v) is float and n not in ("kl", "nll")]
    a, b = ({n: Measured(np.array([[rows[i][n]] for i in ours])) for n in names} for rows in (ours, theirs))
    return {name: compared(a[name], b[name]) for name in names}


def answers_to(samples: Sequence[Sample], folder: str | Path) -> list[str]:
    """What an evaluated folder answers to these samples.

    Raises:
        RessaError: no answers.jsonl there, or it does not answer all of them.
    """
    theirs = read_answers(folder)
    if missing := [s.record.id for s in samples if s.record.id not in theirs]:
        raise RessaError(
            f"{folder}: has no answer to record '{missing[0]}' and {len(missing) - 1} more; evaluate both models on "
            "the same task, data and limit"
        )
    return [theirs[s.record.id] for s in samples]


def read_answers(folder: str | Path) -> dict[str, str]:
    """{record id: answer} of an evaluated folder."""
    return {ident: str(row["answer"]) for ident, row in _read_rows(folder).items()}


def _read_rows(folder: str | Path) -> dict[str, dict[str, Any]]:
    """{record id: its row in answers.jsonl}, each with an answer."""
    path = path_of(folder, "versus") / "answers.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]  # of bytes: U+2028 ends no line
        return {str(line["id"]): line for line in lines if line["answer"] is not None}
    except OSError:
        raise RessaError(f"{folder}: no answers.jsonl there; name the --out folder of another evaluation") from None
    except (ValueError, KeyError, TypeError):
        raise RessaError(f"{path}: is not what `ressa evaluate --out` writes; evaluate that model again") from None
