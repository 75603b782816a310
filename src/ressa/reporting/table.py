"""What a run came to, as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from ressa.errors import printable
from ressa.reporting.stored import counts, folder_of, manifest_of, size_of


def plain(title: str) -> Table:
    """A table without lines, so that nine columns find room in a terminal of 80."""
    return Table(title=cell(title), title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))


def cell(text: object) -> Text:
    """A text of the user's in a table: on one line, with nothing that rich or the terminal would obey."""
    return Text(printable(text))


def when(part: dict[str, Any]) -> str:
    """Whether a part is pruned, for people: sound never is."""
    return "pruned" if part["pruned_by_default"] else "if asked" if part["can_be_pruned"] else "never"


def summary(result: dict[str, Any]) -> Table:
    """One row a model of a run (what `run` returned): scores, zeros of each part, weights kept, size, time."""
    table = plain(result["out"])
    table.add_column("model", no_wrap=True)
    parts = _parts(result["models"])
    scored = bool(result["scores"])
    names = _metrics(next(iter(result["scores"].values()))) if scored else []
    titles = ["VQA" if name == "vqa_accuracy" else name.replace("_", " ") for name in names]
    headers = [*([*titles, "KL to dense"] if scored else []), *(f"{p} zeros" for p in parts)]
    for header in (*headers, "kept (M)", "on disk (MB)", "made in (s)"):
        table.add_column("\n".join(header.rsplit(" ", 1)), justify="right", overflow="fold")
    times = {"pruned": "prune", "repaired": "repair"}
    for name, model in result["models"].items():
        cells = _scores(result["scores"][name]) if scored else []
        seconds = result["seconds"].get(times.get(name, ""))
        table.add_row(name, *cells, *_sizes(model, parts), f"{seconds:.0f}" if seconds is not None else "")
    return table


def by_kind(scores: dict[str, dict[str, Any]]) -> Table:
    """The task's own score (exact match of your own records) per kind of question, one column a model."""
    metric = next(iter(scores.values())).get("metrics", ["exact_match"])[0]
    table = plain(f"{metric.replace('_', ' ')} by kind of question")
    table.add_column("kind", overflow="fold")
    table.add_column("questions", justify="right")
    for name in scores:
        table.add_column(cell(name), justify="right", overflow="fold")
    kinds = next(iter(scores.values()))["by_kind"]
    for kind, first in kinds.items():
        table.add_row(cell(kind), str(first["n"]), *(percent(s["by_kind"][kind].get(metric)) for s in scores.values()))
    return table


def percent(score: float | None) -> str:
    """A score as papers print it: of 100, CIDEr too."""
    return "" if score is None else f"{score:.1%}"


def _parts(models: dict[str, str]) -> list[str]:
    """The parts that any model of the run has pruned matrices in."""
    manifests = [manifest_of(folder_of(model)) for model in models.values()]
    return list(dict.fromkeys(p for m in manifests for p, part in m.get("parts", {}).items() if part["matrices"]))


def _scores(scores: dict[str, Any]) -> list[str]:
    kl = scores.get("kl")
    return [*(percent(scores[name]) for name in _metrics(scores)), "" if kl is None else f"{kl:.3f}"]


def _metrics(scores: dict[str, Any]) -> list[str]:
    """The scores that a summary has room for."""
    return scores.get("metrics", ["exact_match", "vqa_accuracy"])[:2]


def _sizes(model: str, parts: list[str]) -> list[str]:
    """Blank for a model that lies on the hub and not in a folder."""
    folder = folder_of(model)
    if not folder.is_dir():
        return [*("" for _ in parts), "", ""]
    pruned = manifest_of(folder).get("parts", {})
    left = sum(count.weights - count.zeros for count in counts(folder).values())
    return [
        *(f"{pruned[p]['sparsity']:.1%}" if p in pruned else "0.0%" for p in parts),
        f"{left / 1e6:.2f}",
        f"{size_of(folder) / 1e6:.1f}",
    ]
