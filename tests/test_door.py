"""The door: what `import ressa` offers, and that submodules of the same name do not get in the way."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import ressa

VERBS = ["evaluate", "inspect", "load", "prune", "repair", "run"]


def test_the_door_is_small_and_pinned():
    assert sorted(ressa.__all__) == ["RessaError", *VERBS]
    public = {name for name in vars(ressa) if not name.startswith("_") and name not in sys.stdlib_module_names}
    modules = {name for name in public if isinstance(vars(ressa)[name], types.ModuleType)}
    assert public - modules <= {"RessaError", "annotations", "import_module", "ModuleType", "TYPE_CHECKING", "Any"}


def test_every_verb_of_the_door_is_a_documented_function_of_its_own_name():
    for name in VERBS:
        verb = getattr(ressa, name)
        assert inspect.isfunction(verb)
        assert verb.__name__ == name
        assert verb.__doc__


def test_every_verb_stands_in_the_docstring_of_the_door():
    assert all(f"ressa.{name}(" in ressa.__doc__ for name in VERBS)


def test_importing_a_module_does_not_put_it_in_the_place_of_the_verb():
    code = """
import ressa.pruning.verb, ressa.pipeline.run, ressa.repairing, ressa.evaluation
import ressa.repairing.verb, ressa.evaluation.verb
import ressa, sys
for name in ("prune", "run", "repair", "evaluate"):
    assert type(getattr(ressa, name)).__name__ == "function", name
    assert type(sys.modules["ressa." + name]).__name__ == "module", name
from ressa import evaluate, prune, repair, run
from ressa.pruning.verb import prune as same
assert same is prune
from ressa.evaluation import verb as score
assert score.evaluate is evaluate
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_ressa_does_not_import_torch():
    code = "import sys, ressa; ressa.RessaError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
