"""Prune vision-language models, repair them, and prove what it did.

ressa.load(name)                       model and processor of a folder, a hub name, or "demo"
ressa.inspect(name)                    its parts, blocks and linears; what would be pruned
ressa.plan(name)                       what pruning and repairing it will take, from its config alone
ressa.prune(name, out, data=...)       a folder with zeros
ressa.repair(pruned, out, teacher=...) a folder with the same zeros that answers like the dense model
ressa.evaluate(name, data=...)         how well it answers
ressa.export(pruned, out)              the same model packed: kept weights and a bitmask, or dense again
ressa.bench(packed, against=pruned)    what it takes in bytes and seconds on this machine, beside the dense one
ressa.compare(name, out, methods=...)  several methods side by side
ressa.run(recipe)                      all of it, from one recipe
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from ressa.errors import RessaError
from ressa.settings import by_keywords

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    # Waiting threads of OpenMP spin, 300,000 times, and take the core that a working one needs. To sleep at once would
    # cost more than half of a small model's time (benchmarks/results/threads.md). Read when torch is first imported.
    os.environ["GOMP_SPINCOUNT"] = "10000"

_HOMES = {
    **dict.fromkeys(("Recipe", "read_recipe"), "ressa.pipeline.recipe"),
    "Bench": "ressa.benching.settings",
    "Evaluate": "ressa.evaluation.settings",
    "Export": "ressa.exporting.settings",
    "Prune": "ressa.pruning.settings",
    "Repair": "ressa.repairing.settings",
    "Runtime": "ressa.settings",
    "bench": "ressa.benching.verb",
    "compare": "ressa.pipeline.compare",
    "evaluate": "ressa.evaluation.verb",
    "export": "ressa.exporting.verb",
    "inspect": "ressa.inspection.verb",
    "load": "ressa.model.load",
    "plan": "ressa.inspection.plan",
    "prune": "ressa.pruning.verb",
    "repair": "ressa.repairing.verb",
    "run": "ressa.pipeline.run",
}
_BY_KEYWORDS = {
    "bench": "",
    "compare": "method",
    "evaluate": "",
    "export": "",
    "plan": "",
    "prune": "",
    "repair": "",
}  # {verb: field left out}

__all__ = ["RessaError", *_HOMES]


def __getattr__(name: str) -> Any:
    """Verbs are imported when first used, so that `ressa --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ressa' has no attribute '{name}'")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = by_keywords(found, _BY_KEYWORDS[name]) if name in _BY_KEYWORDS else found
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
