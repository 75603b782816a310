"""Prune vision-language models, repair them, and prove what it did.

ressa.load(name)                       model and processor of a folder, a hub name, or "demo"
ressa.inspect(name)                    its parts, blocks and linears; what would be pruned
ressa.prune(name, out, data=...)       a folder with zeros
ressa.repair(pruned, out, teacher=...) a folder with the same zeros that answers like the dense model
ressa.evaluate(name, data=...)         how well it answers
ressa.run(recipe)                      all of it, from one recipe
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ressa.errors import RessaError

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    # Waiting threads of OpenMP spin, 300,000 times, and take the core that a working one needs. To sleep at once would
    # cost more than half of a small model's time (benchmarks/results/threads.md). Read when torch is first imported.
    os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:
    from ressa.evaluate.score import evaluate
    from ressa.model.load import load
    from ressa.prune import prune
    from ressa.repair.train import repair
    from ressa.report.inspection import inspect
    from ressa.run import run

__all__ = ["RessaError", "evaluate", "inspect", "load", "prune", "repair", "run"]

_HOMES = {
    "evaluate": "ressa.evaluate.score",
    "inspect": "ressa.report.inspection",
    "load": "ressa.model.load",
    "prune": "ressa.prune",
    "repair": "ressa.repair.train",
    "run": "ressa.run",
}


def _verb(name: str, home: str) -> Any:
    # The setter drops what the import system would put there: the module `ressa.prune` in place of the verb.
    return property(lambda door: getattr(import_module(home), name), lambda door, module: None)


# Verbs are imported when first used, so that `ressa --help` need not wait for torch.
_verbs = {name: _verb(name, home) for name, home in _HOMES.items()}
sys.modules[__name__].__class__ = type("Door", (ModuleType,), _verbs)
