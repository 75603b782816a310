"""The door: what `import ressa` offers, to people and to editors; and that no package stands in its way.

`make tables` renews the stub that editors and type checkers read.
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ressa
from ressa.evaluation.settings import Evaluate
from ressa.pruning.settings import Prune

VERBS = ["bench", "compare", "evaluate", "export", "inspect", "load", "plan", "prune", "repair", "run"]
SETTINGS = ["Bench", "Evaluate", "Export", "Prune", "Recipe", "Repair", "Runtime"]
SOURCE = Path(ressa.__file__).parent
STUB = SOURCE / "__init__.pyi"
SHARES = r"\b((?:sparsity|vision|connector|language|total): str)\b"  # a number is taken as its text


def stub() -> str:
    """The names of the door with their full signatures."""
    lines = ["# Written by tests/test_door.py", "from collections.abc import Callable, Sequence"]
    lines += ["from pathlib import Path", "from typing import Any", ""]
    names = sorted(ressa.__all__, key=lambda name: name in ressa._BY_KEYWORDS)
    for name in names:
        found = getattr(ressa, name)
        if name not in ressa._BY_KEYWORDS:
            lines.append(f"from {found.__module__} import {name} as {name}")
            continue
        signature = inspect.signature(found).replace(return_annotation=dict[str, Any])
        text = re.sub(r"\b(collections\.abc|typing|pathlib|ressa\.[\w.]+)\.(?=[A-Z])", "", str(signature))
        text = re.sub(SHARES, r"\1 | float", text)
        lines.append(f"def {name}{text}: ...")
    done = "\n".join(lines) + "\n"
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(STUB), "-"]
        done = subprocess.run(ruff, input=done, capture_output=True, text=True, check=True).stdout
    return done


def test_the_door_is_pinned():
    assert sorted(ressa.__all__) == sorted(["RessaError", "read_recipe", *VERBS, *SETTINGS])
    assert set(ressa.__all__) <= set(dir(ressa))


def test_every_verb_of_the_door_is_a_documented_function_of_its_own_name():
    for name in VERBS:
        verb = getattr(ressa, name)
        assert inspect.isfunction(verb)
        assert verb.__name__ == name
        assert verb.__doc__


def test_every_verb_stands_in_the_docstring_of_the_door():
    assert all(f"ressa.{name}(" in ressa.__doc__ for name in VERBS)


def test_help_of_a_verb_explains_every_setting_of_it():
    assert "damp: Added to the Gram's diagonal" in ressa.prune.__doc__
    assert "num_beams: Beams in generation" in ressa.evaluate.__doc__
    parameters = inspect.signature(ressa.prune).parameters
    assert parameters["damp"].default is None
    assert "settings" not in parameters
    assert "method" not in inspect.signature(ressa.compare).parameters  # it takes several


def test_editors_are_told_what_the_verbs_take():
    assert STUB.read_text(encoding="utf-8") == stub(), "out of date; run: make tables"


def test_an_unknown_keyword_is_a_type_error_that_names_the_verb():
    with pytest.raises(TypeError, match=r"prune\(\): .*'sparsitty'"):
        ressa.prune("demo", "out", sparsitty="2:4")


def test_no_file_is_hidden_by_a_name_of_the_door():
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(("ressa", *(part for part in parts if part != "__init__")))
        if "__main__" in name:
            continue
        found = {}
        exec(f"import {name} as found", found)
        assert found["found"] is importlib.import_module(name)


def test_settings_can_be_made_before_torch_is_there_but_for_their_checks():
    code = "import sys, ressa; ressa.RessaError, ressa.Prune, ressa.Recipe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_settings_of_python_are_those_of_recipes():
    assert ressa.Prune is Prune
    assert ressa.Evaluate is Evaluate
    with pytest.raises(ressa.RessaError, match="prune: samples: 0 must be at least 1"):
        ressa.Prune(samples=0)


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
