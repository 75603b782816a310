"""Scenes, the question about each, and what every model of a run answered: the picture a person looks at."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from ressa.data.records import Record, read_records
from ressa.errors import check_extra, printable
from ressa.reporting.figure import save

TITLE, IMAGE, WORDS = 0.8, 3.0, 1.4  # heights in inches
GOOD, BAD, INK, PALE = "#1a7f37", "#cf222e", "#24292f", "#57606a"
Answers = dict[str, dict[str, dict[str, Any]]]  # model -> record id -> its row in answers.jsonl


def picture(
    result: dict[str, Any], data: str, split: str, path: str | Path, *, columns: int = 4, rows: int = 2
) -> Path | None:
    """Draws `columns` x `rows` records with the answers of all models of a run into a PNG; None if none has a picture.

    Half of the records are ones that pruning got wrong and repair right again, where there are any; right answers are
    green, wrong ones red. The title says how many answers of each model are right, so that the choice misleads nobody.
    """
    check_extra("report", "matplotlib")
    from matplotlib.figure import Figure  # without pyplot: nothing global, no window

    answers = {name: _answers(Path(result["out"]) / "scores" / name / "answers.jsonl") for name in result["scores"]}
    asked = [r for r in read_records(data, split) if r.image and r.id in answers["dense"]]
    chosen = _choose(asked, answers, columns * rows)
    if not chosen:
        return None
    figure = Figure(figsize=(3.3 * columns, (IMAGE + WORDS) * rows + TITLE), facecolor="white")
    scores = "   ".join(f"{name} {s['exact_match']:.1%}" for name, s in result["scores"].items())
    figure.suptitle(f"Right answers of {result['scores']['dense']['n']}:   {scores}", fontsize=17, color=INK, y=0.985)
    for place, record in enumerate(chosen, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(record.open_image(), interpolation="lanczos")
        axes.set_anchor("S")  # the words stand right below
        axes.set_axis_off()
        _caption(axes, record.question or "(caption)", {name: by_id[record.id] for name, by_id in answers.items()})
    height = figure.get_figheight()
    edges = {"left": 0.02, "right": 0.98, "top": 1 - TITLE / height, "bottom": WORDS / height}
    figure.subplots_adjust(**edges, wspace=0.12, hspace=WORDS / IMAGE)
    return save(figure, path, dpi=100)


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])}


def _choose(asked: list[Record], answers: Answers, n: int) -> list[Record]:
    """`n` records of different pictures: half of them regained by repair, the rest spread over the split."""
    last = list(answers)[-1]

    def regained(record: Record) -> bool:
        right = {name: by_id[record.id]["exact_match"] == 1 for name, by_id in answers.items()}
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


def _caption(axes: Any, question: str, answers: dict[str, dict[str, Any]]) -> None:
    """The question in at most two lines, then one line a model."""
    asked = textwrap.fill(question, 32, max_lines=2, placeholder=" …")
    _write(axes, 0, -6, asked, ha="center", fontsize=11.5, color=INK, weight="bold")
    for line, (name, row) in enumerate(answers.items()):
        answer = " ".join(row["answer"].split()) or "(nothing)"
        answer = answer if len(answer) < 27 else answer[:25] + "…"
        y = -42 - 17 * line
        _write(axes, -42, y, name, ha="right", fontsize=11, color=PALE)
        _write(axes, -34, y, answer, ha="left", fontsize=11, color=GOOD if row["exact_match"] == 1 else BAD)


def _write(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """`text`, (x, y) points from the middle of the lower edge of a picture of any shape. A $ in it is no formula."""
    place = {"xy": (0.5, 0), "xycoords": "axes fraction", "xytext": (x, y), "textcoords": "offset points"}
    lines = "\n".join(map(printable, text.split("\n")))
    axes.annotate(lines, **place, va="top", parse_math=False, annotation_clip=False, **style)
