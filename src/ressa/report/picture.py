"""Scenes, the question about each, and what every model of a run answered: the picture a person looks at."""

from __future__ import annotations

import json
import textwrap
import warnings
from pathlib import Path
from typing import Any

from ressa.data.records import Record, read_records

GOOD, BAD, INK, PALE = "#1a7f37", "#cf222e", "#24292f", "#57606a"
Answers = dict[str, dict[str, dict[str, Any]]]  # model -> record id -> its row in answers.jsonl


def picture(
    result: dict[str, Any], data: str, split: str, path: str | Path, *, columns: int = 4, rows: int = 2
) -> Path | None:
    """Draws `columns` x `rows` records with the answers of all models of a run into a PNG; None if none has a picture.

    Half of the records are ones that pruning got wrong and repair right again, where there are any; right answers are
    green, wrong ones red. The title says how many answers of each model are right, so that the choice misleads nobody.
    """
    from matplotlib.figure import Figure  # without pyplot: nothing global, no window

    answers = {name: _answers(Path(result["out"]) / "scores" / name / "answers.jsonl") for name in result["scores"]}
    asked = [r for r in read_records(data, split) if r.image and r.id in answers["dense"]]
    chosen = _choose(asked, answers, columns * rows)
    if not chosen:
        return None
    figure = Figure(figsize=(3.3 * columns, 4.35 * rows + 0.8), facecolor="white")
    scores = "   ".join(f"{name} {s['exact_match']:.1%}" for name, s in result["scores"].items())
    figure.suptitle(f"Right answers of {result['scores']['dense']['n']}:   {scores}", fontsize=17, color=INK, y=0.985)
    for place, record in enumerate(chosen, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(record.open_image(), interpolation="lanczos")
        axes.set_axis_off()
        _caption(axes, record.question or "(caption)", {name: told[record.id] for name, told in answers.items()})
    top = 1 - 0.75 / figure.get_figheight()
    figure.subplots_adjust(left=0.02, right=0.98, top=top, bottom=0.13, wspace=0.12, hspace=0.42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font lacks are drawn as boxes
        figure.savefig(path, dpi=100)
    return Path(path)


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])}


def _choose(asked: list[Record], answers: Answers, n: int) -> list[Record]:
    """`n` records of different pictures: half of them regained by repair, the rest spread over the split."""
    last = list(answers)[-1]

    def regained(record: Record) -> bool:
        right = {name: told[record.id]["exact_match"] == 1 for name, told in answers.items()}
        return right["dense"] and right[last] and not all(right.values())

    gained = [record for record in asked if regained(record)]
    chosen: dict[str, Record] = {}  # by picture
    for record in _spread(gained, 8 * n):
        if len(chosen) < n // 2:
            chosen.setdefault(_picture_of(record), record)
    for record in [*_spread(asked, 8 * n), *asked]:
        if len(chosen) < n:
            chosen.setdefault(_picture_of(record), record)
    return list(chosen.values())


def _spread(records: list[Record], n: int) -> list[Record]:
    """At most `n` of them, at equal distances."""
    return [records[i * len(records) // n] for i in range(n)] if len(records) > n else records


def _picture_of(record: Record) -> str:
    return record.image.identity() if record.image else ""


def _caption(axes: Any, question: str, told: dict[str, dict[str, Any]]) -> None:
    """The question in at most two lines, then one line a model. A $ of the user's is no formula."""
    common = {"transform": axes.transAxes, "va": "top", "parse_math": False}
    asked = textwrap.fill(question, 32, max_lines=2, placeholder=" …")
    axes.text(0.5, -0.03, asked, ha="center", fontsize=11.5, color=INK, weight="bold", **common)
    for line, (name, row) in enumerate(told.items()):
        colour = GOOD if row["exact_match"] == 1 else BAD
        answer = " ".join(row["answer"].split()) or "(nothing)"
        y = -0.19 - 0.115 * line
        axes.text(0.3, y, name, ha="right", fontsize=11, color=PALE, **common)
        axes.text(0.35, y, answer if len(answer) < 27 else answer[:25] + "…", fontsize=11, color=colour, **common)
