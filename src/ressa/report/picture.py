"""Scenes, the question about each, and what every model of a run answered: the picture a person looks at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ressa.data.records import read_records

GOOD, BAD, INK = "#1a7f37", "#cf222e", "#24292f"


def picture(
    result: dict[str, Any], data: str, split: str, path: str | Path, *, columns: int = 4, rows: int = 2
) -> Path:
    """Draws `columns` x `rows` records with the answers of all models of a run into a PNG.

    Half of the records are ones that pruning got wrong and repair right again, where there are any; right answers are
    green, wrong ones red. The title says how many answers of each model are right, so that the choice misleads nobody.
    """
    from matplotlib.figure import Figure  # without pyplot: nothing global, no window

    answers = {name: _answers(Path(result["out"]) / "scores" / name / "answers.jsonl") for name in result["scores"]}
    records = {record.id: record for record in read_records(data, split)}
    chosen = _choose([i for i in records if i in next(iter(answers.values()))], answers, columns * rows)
    figure = Figure(figsize=(3.3 * columns, 4.35 * rows + 0.8), facecolor="white")
    scores = "   ".join(f"{name} {s['exact_match']:.1%}" for name, s in result["scores"].items())
    figure.suptitle(f"Right answers of {result['scores']['dense']['n']}:   {scores}", fontsize=17, color=INK, y=0.985)
    for place, key in enumerate(chosen, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(records[key].open_image(), interpolation="lanczos")
        axes.set_axis_off()
        _caption(axes, records[key].question or "", {name: told[key] for name, told in answers.items()})
    figure.subplots_adjust(
        left=0.02, right=0.98, top=1 - 0.75 / figure.get_figheight(), bottom=0.13, wspace=0.12, hspace=0.42
    )
    figure.savefig(path, dpi=100)
    return Path(path)


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def _choose(ids: list[str], answers: dict[str, dict[str, dict[str, Any]]], n: int) -> list[str]:
    """`n` records of different pictures: half of them regained by repair, the rest as they come, spread over the split."""
    last = list(answers)[-1]

    def regained(key: str) -> bool:
        right = {name: told[key]["exact_match"] == 1 for name, told in answers.items()}
        return right["dense"] and right[last] and not all(right.values())

    spread = [ids[i * len(ids) // (8 * n)] for i in range(8 * n)] if len(ids) >= 8 * n else ids
    best = [key for key in ids if regained(key)][:: max(1, len(ids) // 400)][: n // 2]
    seen: dict[str, None] = dict.fromkeys([*best, *(key for key in spread if key not in best)][: max(n, 1)])
    return list(seen)


def _caption(axes: Any, question: str, told: dict[str, dict[str, Any]]) -> None:
    axes.text(
        0.5,
        -0.05,
        question,
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=11.5,
        color=INK,
        weight="bold",
        wrap=True,
    )
    for line, (name, row) in enumerate(told.items()):
        colour = GOOD if row["exact_match"] == 1 else BAD
        y = -0.19 - 0.115 * line
        axes.text(0.3, y, name, transform=axes.transAxes, ha="right", va="top", fontsize=11, color="#57606a")
        axes.text(
            0.35,
            y,
            row["answer"] or "(nothing)",
            transform=axes.transAxes,
            ha="left",
            va="top",
            fontsize=11,
            color=colour,
        )
