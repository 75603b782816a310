"""A recipe as YAML, in and out, and the check of every value a recipe or the command line gives. No model is loaded."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ressa.errors import RessaError, unknown
from ressa.paths import path_of
from ressa.settings import TASKS, Evaluate, Prune, Recipe, Repair, Runtime

SECTIONS = {"prune": Prune, "repair": Repair, "evaluate": Evaluate, "runtime": Runtime}
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


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


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, where that loses nothing."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    section = next((option for option in options if option in SECTIONS.values()), None)
    if value is None and section:
        raise RessaError(f"{where}: has nothing in it; write {{}} for its defaults, or leave the line out")
    if value is None and type(None) not in options:
        raise RessaError(f"{where}: has no value")
    if value is None or type(value) in options:
        return value
    if section:
        return build(section, value, where)
    if type(value) in (int, float) and str in options:
        return str(value)  # sparsity: 0.5
    if type(value) is int and float in options:
        return float(value)
    names = " or ".join(WORDS[option] for option in options if option in WORDS)
    raise RessaError(f"{where}: {value!r} is not {names}")


def _check(made: Any, where: str) -> None:
    """What a type cannot say: patterns, names and numbers out of range."""
    for f in fields(made):
        value, place = getattr(made, f.name), f"{where}: {f.name}"
        if type(value) in (int, float):
            _limits(value, f.metadata, place)
        if isinstance(value, str) and f.metadata["among"] and value not in f.metadata["among"]:
            raise RessaError(f"{where}: {unknown(f.name, value, f.metadata['among'])}")
    if isinstance(made, Evaluate) and made.task not in TASKS:
        raise RessaError(f"{where}: {unknown('task', made.task, TASKS)}")
    if isinstance(made, Prune):
        from ressa import methods  # all load torch: only when there is something to check
        from ressa.allocation.request import Request
        from ressa.patterns import parse

        with _told_from(where):
            methods.get(made.method, damp=made.damp)
        for name in ("sparsity", "vision", "connector", "language", "total"):
            if (text := getattr(made, name)) is not None:
                with _told_from(where if name == "sparsity" else f"{where}: {name}"):
                    parse(text)
        with _told_from(where):
            Request.of(made)


def _limits(value: float, limits: Mapping[str, Any], where: str) -> None:
    above, least, most = limits["above"], limits["least"], limits["most"]
    if least is None and isinstance(value, int):
        least = 1
    if not math.isfinite(value):
        raise RessaError(f"{where}: {value} is no number that can be used")
    if above is not None and not value > above:
        raise RessaError(f"{where}: {value} must be above {above}")
    if least is not None and not value >= least:
        raise RessaError(f"{where}: {value} must be at least {least}")
    if most is not None and not value <= most:
        raise RessaError(f"{where}: {value} must be at most {most}")


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
