"""What an evaluation came to, as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NAMES = {"vqa_accuracy": "VQA accuracy", "f1": "F1", "yes_ratio": "yes ratio"}


def lines(scores: dict[str, Any]) -> Iterator[str]:
    """Every score of the whole with its 95 % interval; what was left out or could not be computed."""
    first = ", ".join(f"{_name(name)} {scores[name]:.1%}" for name in scores["metrics"])
    what = {"folder": "questions"}.get(scores["task"], f"questions of {scores['task']}")
    kl = f", KL to dense {scores['kl']:.4f}" if scores["kl"] is not None else ""
    yield f"{first}{kl} ({scores['n']} {what})"
    sure = {name: scores["intervals"][name] for name in scores["metrics"][:1] if name in scores["intervals"]}
    for name, (low, high) in sure.items():
        yield f"95 % of resampled {_name(name)}: {low:.1%} to {high:.1%}"
    if "perplexity" in scores:
        dense = f", of the dense model {scores['dense_perplexity']:.3f}" if "dense_perplexity" in scores else ""
        yield f"perplexity of the reference answers {scores['perplexity']:.3f}{dense}"
    for name, pair in scores.get("versus", {}).items():
        if isinstance(pair, dict):
            low, high = pair["interval"]
            difference = f"{pair['difference']:+.1%} ({low:+.1%} to {high:+.1%}), p = {pair['p']:.3g}"
            yield f"{_name(name)} beside {scores['versus']['folder']}: {difference}"
    for why, count in scores["left_out"].items():
        yield f"left out: {count} with {why}"
    for name, why in scores["missing"].items():
        yield f"not computed: {name}: {why}"


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))
