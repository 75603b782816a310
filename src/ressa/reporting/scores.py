"""What an evaluation came to, as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NAMES = {"vqa_accuracy": "VQA accuracy", "f1": "F1", "yes_ratio": "yes ratio"}


def lines(told: dict[str, Any]) -> Iterator[str]:
    """Every score of the whole with its 95 % interval; what was left out or could not be computed."""
    first = ", ".join(f"{_name(name)} {told[name]:.1%}" for name in told["metrics"])
    what = {"folder": "questions"}.get(told["task"], f"questions of {told['task']}")
    kl = f", KL to dense {told['kl']:.4f}" if told["kl"] is not None else ""
    yield f"{first}{kl} ({told['n']} {what})"
    sure = {name: told["intervals"][name] for name in told["metrics"][:1] if name in told["intervals"]}
    for name, (low, high) in sure.items():
        yield f"95 % of resampled {_name(name)}: {low:.1%} to {high:.1%}"
    if "perplexity" in told:
        dense = f", of the dense model {told['dense_perplexity']:.3f}" if "dense_perplexity" in told else ""
        yield f"perplexity of the reference answers {told['perplexity']:.3f}{dense}"
    for name, pair in told.get("versus", {}).items():
        if isinstance(pair, dict):
            low, high = pair["interval"]
            difference = f"{pair['difference']:+.1%} ({low:+.1%} to {high:+.1%}), p = {pair['p']:.3g}"
            yield f"{_name(name)} beside {told['versus']['folder']}: {difference}"
    for why, count in told["left_out"].items():
        yield f"left out: {count} with {why}"
    for name, why in told["missing"].items():
        yield f"not computed: {name}: {why}"


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))
