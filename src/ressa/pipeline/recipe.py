"""A recipe as YAML, in and out, and the check of every value a recipe or the command line gives. No model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ressa.errors import RessaError, unknown
from ressa.files.paths import path_of
from ressa.limits import SHARES, as_kind, options, within
from ressa.settings import TASKS, Evaluate, Prune, Recipe, Repair, Runtime

SECTIONS = {"prune": Prune, "repair": Repair, "evaluate": Evaluate, "runtime": Runtime}


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file, checked to the last value.

    Raises:
        RessaError: no such file, no YAML, an unknown key (with the nearest right one), a value of the wrong kind.
    """
    try:
        told = yaml.load(path_of(path, "the recipe").read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, `!!int x`
        raise RessaError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    return build(Recipe, told, str(path))


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, without what it leaves out."""
    told = {key: value for key, value in asdict(recipe).items() if value is not None}
    return yaml.safe_dump(told, sort_keys=False)


def build(cls: type[Any], told: Any, where: str) -> Any:
    """An object of one of the classes of `settings` from a mapping; RessaError naming `where` for what does not fit."""
    if not isinstance(told, dict):
        raise RessaError(f"{where}: must be `key: value` lines, not {type(told).__name__}")
    kinds = get_type_hints(cls)
    for key in told:
        if key not in kinds:
            raise RessaError(f"{where}: {unknown('key', str(key), kinds)}")
    values = {key: _value(kinds[key], value, f"{where}: {key}") for key, value in told.items()}
    made = cls(**values)
    _check(made, where)
    return made


def checked(made: Any, where: str) -> Any:
    """The same object, every value in it checked: Python makes one without asking. Raises RessaError as `build`."""
    return build(type(made), {f.name: told for f in fields(made) if (told := getattr(made, f.name)) is not None}, where)


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, where that loses nothing; a section of a recipe is a mapping."""
    section = next((option for option in options(kind) if option in SECTIONS.values()), None)
    if value is None and section:
        raise RessaError(f"{where}: has nothing in it; write {{}} for its defaults, or leave the line out")
    if section:
        return checked(value, where) if type(value) is section else build(section, value, where)
    return as_kind(kind, value, where)


def _check(made: Any, where: str) -> None:
    """What a type cannot say: patterns, names and numbers out of range."""
    for f in fields(made):
        within(f.name, getattr(made, f.name), f.metadata, where)
    if isinstance(made, Evaluate) and made.task not in TASKS:
        raise RessaError(f"{where}: {unknown('task', made.task, TASKS)}")
    if isinstance(made, Prune):
        from ressa import methods  # all load torch: only when there is something to check
        from ressa.patterns import parse
        from ressa.pruning.request import Request

        with _told_from(where):
            methods.get(made.method, damp=made.damp)
            methods.check_moving(made.method, made.asymmetric)
        for name in SHARES:
            if (text := getattr(made, name)) is not None:
                with _told_from(where if name == "sparsity" else f"{where}: {name}"):
                    parse(text)
        with _told_from(where):
            Request.of(made)


@contextmanager
def _told_from(where: str) -> Iterator[None]:
    """Errors of other modules, with the place of the setting they are about."""
    try:
        yield
    except RessaError as error:
        raise RessaError(f"{where}: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2:4 as 124, in base sixty, and 010 as 8. Here they are texts; and 1e-3 is a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping; of two equal keys YAML would silently take the last one."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands here twice", key.start_mark)
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
    return loader.construct_mapping(node, deep=True)


def _number(tag: str, pattern: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list("-+0123456789."))


_OURS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}  # no setting is a date
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OURS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_number("int", r"^[-+]?(0|[1-9]\d*)$")
_number("float", r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$")
