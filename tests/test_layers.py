"""Imports go one way: a file may import what is lower, never what is higher or beside it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ressa"
FILES = sorted(SOURCE.rglob("*.py"))

# Each room and what of ressa it may import besides itself. A new room has to be put here, on purpose.
MAY = {
    "errors": set(),
    "families": set(),
    "settings": {"errors"},
    "demo": set(),
    "patterns": {"errors"},
    "statistics": {"errors"},
    "machine": {"errors", "settings"},
    "files": {"errors"},
    "methods": {"errors", "patterns", "statistics"},
    "data": {"errors", "families", "files"},
    "tasks": {"data", "errors", "families"},
    "preparation": {"data", "errors", "files", "settings", "tasks"},
    "model": {"demo", "errors", "families", "files", "machine", "patterns"},
    "calibration": {"data", "errors", "families", "files", "machine", "model", "statistics"},
    "allocation": {"calibration", "data", "errors", "files", "model", "statistics"},
    "pruning": {
        *("allocation", "calibration", "data", "errors", "machine", "methods", "model", "patterns", "settings"),
        "statistics",
    },
    "repairing": {"calibration", "data", "errors", "families", "files", "machine", "model", "patterns", "settings"},
    "evaluation": {"calibration", "data", "errors", "families", "files", "machine", "model", "settings", "tasks"},
    "inspection": {"data", "errors", "files", "methods", "model", "patterns", "settings", "statistics"},
    "pipeline": {
        *("calibration", "data", "errors", "evaluation", "files", "machine", "model", "pruning", "repairing"),
        "settings",
    },
    "reporting": {"data", "demo", "errors", "files"},
    "cli": {
        *("data", "errors", "evaluation", "files", "inspection", "methods", "pipeline", "preparation", "pruning"),
        *("repairing", "reporting", "settings"),
    },
}
LIGHT = {  # rooms and modules that `ressa --help` reads, "" is the door
    *("", "errors", "families", "settings", "demo", "cli", "files", "files.paths", "pipeline", "pipeline.recipe"),
    *(
        f"{verb}{file}"
        for verb in ("pruning", "repairing", "evaluation", "preparation", "inspection")
        for file in ("", ".settings")
    ),
}
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "matplotlib"}


def room(path: Path) -> str:
    """The first name below ressa: methods/wanda.py is `methods`, the door is ""."""
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(path: Path, *, at_once: bool = False) -> set[str]:
    """Full names of all modules that a file imports (`at_once`: when it is imported itself)."""
    names = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), at_once):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _statements(tree: ast.AST, at_once: bool):
    for node in ast.iter_child_nodes(tree):
        waits = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if at_once and (waits or types_only):
            continue
        yield node
        yield from _statements(node, at_once)


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("ressa.")}


@pytest.mark.parametrize("path", [p for p in FILES if room(p)], ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_rooms_below_its_own(path):
    own = room(path)
    assert own in MAY, f"{own} is a new room: say in MAY what it may import"
    assert rooms_of(imported(path)) <= MAY[own] | {own}


def test_the_rooms_have_an_order_so_that_no_two_can_import_each_other():
    order: list[str] = []
    while len(order) < len(MAY):
        ready = [name for name, below in MAY.items() if name not in order and below <= set(order)]
        assert ready, f"a circle among {set(MAY) - set(order)}"
        order += ready


def test_the_verbs_never_import_one_another_and_nothing_imports_the_command_line():
    verbs = {"prune", "repair", "evaluate"}
    for path in FILES:
        found = rooms_of(imported(path))
        if room(path) in verbs:
            assert not found & (verbs - {room(path)}), path
        assert "cli" not in found or room(path) == "cli", path


@pytest.mark.parametrize("own", ["methods", "patterns", "inputs"])
def test_methods_patterns_and_inputs_need_nothing_but_torch(own):
    standard = set(sys.stdlib_module_names)
    for path in (p for p in FILES if room(p) == own):
        assert {name.split(".")[0] for name in imported(path)} <= standard | {"torch", "ressa"}, path


def module(path: Path) -> str:
    """The dotted name below ressa: files/paths.py is files.paths, cli/__init__.py is cli."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").strip(".")


def light(name: str) -> bool:
    return name in LIGHT or name.split(".")[0] == "cli"


@pytest.mark.parametrize("path", [p for p in FILES if light(module(p))], ids=lambda p: str(p.relative_to(SOURCE)))
def test_what_help_needs_imports_nothing_heavy(path):
    names, known = imported(path, at_once=True), {module(p) for p in FILES}
    assert not {name.split(".")[0] for name in names} & HEAVY
    for name in (name.removeprefix("ressa.") for name in names if name.startswith("ressa.")):
        assert light(name if name in known else name.rpartition(".")[0]), name


def test_emoji_scenes_can_be_drawn_without_torch():
    code = (
        "import sys; from ressa.data.emoji.scenes import draw, scene; draw(scene('train', 0));"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
