"""Imports go one way: a file may import what is lower, never what is higher or beside it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ressa"
FILES = sorted(SOURCE.rglob("*.py"))

TABLE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("<!-- rooms -->")[2]
ROWS = re.findall(r"(?m)^\| `(\w+)[^|]*\|[^|]*\|([^|]*)\|$", TABLE.partition("<!-- end of rooms -->")[0])
MAY = {room: set(re.findall(r"`(\w+)`", rooms)) for room, rooms in ROWS}  # what of ressa each may import
LIGHT = ("ressa", "ressa.cli", "ressa.tasks", "ressa.preparation.sources", "ressa.pipeline.recipe")
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


def test_a_room_imports_only_what_stands_above_it_in_the_table():
    above: set[str] = set()
    for own, below in MAY.items():
        assert below <= above, f"{own} stands above {below - above}"
        above.add(own)


def test_every_import_that_the_table_allows_is_there():
    found: dict[str, set[str]] = {own: set() for own in MAY}
    for path in (path for path in FILES if room(path)):
        found[room(path)] |= rooms_of(imported(path)) - {room(path)}
    assert found == MAY


def test_no_room_holds_more_than_15_percent_of_the_lines():
    lines: dict[str, int] = {}
    for path in FILES:
        text = path.read_text(encoding="utf-8").splitlines()
        code = sum(1 for line in text if line.strip() and not line.lstrip().startswith("#"))
        lines[room(path)] = lines.get(room(path), 0) + code
    assert max(lines.values()) <= 0.15 * sum(lines.values()), max(lines, key=lambda name: lines[name])


def test_no_two_files_import_each_other():
    below = {module(path): modules_of(imported(path, at_once=True)) for path in FILES}
    while done := [name for name, names in below.items() if not names & below.keys()]:
        for name in done:
            del below[name]
    assert not below


def test_the_verbs_never_import_one_another_and_nothing_imports_the_command_line():
    verbs = {"pruning", "repairing", "evaluation", "exporting", "inspection", "benching", "preparation"}
    for path in FILES:
        found = rooms_of(imported(path))
        if room(path) in verbs:
            assert not found & (verbs - {room(path)}), path
        assert "cli" not in found or room(path) == "cli", path


@pytest.mark.parametrize("own", ["methods", "patterns", "statistics"])
def test_methods_patterns_and_statistics_need_nothing_but_torch(own):
    standard = set(sys.stdlib_module_names)
    for path in (p for p in FILES if room(p) == own):
        assert {name.split(".")[0] for name in imported(path)} <= standard | {"torch", "ressa"}, path


def module(path: Path) -> str:
    """The dotted name below ressa: files/paths.py is files.paths, cli/__init__.py is cli."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").strip(".")


def modules_of(names: set[str]) -> set[str]:
    """The modules of ressa among full names, or those that the names stand in."""
    known = {module(path) for path in FILES}
    ours = {name.removeprefix("ressa.") for name in names if name.startswith("ressa.")}
    return {name if name in known else name.rpartition(".")[0] for name in ours}


@pytest.mark.parametrize("module", LIGHT)
def test_what_help_needs_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_emoji_scenes_can_be_drawn_without_torch():
    code = (
        "import sys; from ressa.data.emoji.scenes import draw, scene; draw(scene('train', 0));"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_have_300_lines_at_most_and_functions_40_of_code(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            code = lines[body[0].lineno - 1 : body[-1].end_lineno] if body else []
            assert sum(1 for line in code if line.strip() and not line.lstrip().startswith("#")) <= 40, node.name


def test_no_function_takes_more_than_8_arguments_but_commands_and_what_makes_settings():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and room(path) != "cli":
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                assert len([name for name in names if name != "self"]) <= 8, f"{path}: {node.name}"
