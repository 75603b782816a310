"""Every value of a setting within its kind and its limits: one check, for recipes, the command line and Python."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from typing import Any, Union, get_args, get_origin, get_type_hints

from ressa.errors import RessaError, unknown
from ressa.settings import Recipe

SHARES = ("sparsity", "vision", "connector", "language", "total")  # texts that may be written as numbers
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def check(cls: type[Any], told: Mapping[str, Any], where: str) -> None:
    """Raises RessaError, one line that begins with `where`, for an entry of `told` that a setting of `cls` of the same
    name may not be. Entries that `cls` does not know are left to others; a `seed` is the one of `Recipe`.
    """
    for owner in (cls, Recipe):
        kinds = get_type_hints(owner)
        for f in fields(owner):
            if f.name in told and (owner is cls or f.name == "seed"):
                kind, value, place = kinds[f.name], told[f.name], f"{where}: {f.name}"
                if str in options(kind) and f.name not in SHARES and isinstance(value, int | float):
                    raise _other_kind(kind, value, place)  # a recipe makes a text of it, a verb gets it as it is
                within(f.name, as_kind(kind, value, place), f.metadata, where)


def check_paths(where: str, **told: Any) -> None:
    """Raises RessaError for an argument that is no text and no path."""
    for name, value in told.items():
        if not isinstance(value, str | PathLike):
            raise RessaError(f"{where}: {name}: {_shown(value)} is neither a text nor a path")


def check_instance(cls: type[Any], value: Any, where: str) -> None:
    """Raises RessaError for what is no object of a class of `settings`."""
    if not isinstance(value, cls):
        raise RessaError(f"{where}: {_shown(value)} is no {cls.__name__}: make one, ressa.settings.{cls.__name__}(...)")


def options(kind: Any) -> tuple[Any, ...]:
    """The kinds in `int | None`; of a bare kind itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def as_kind(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, where that loses nothing. Raises RessaError that names `where`."""
    known, value = options(kind), _spelled(value)
    if value is None and type(None) not in known:
        raise RessaError(f"{where}: has no value")
    if value is None or type(value) in known:
        return value
    if type(value) in (int, float) and str in known:
        return str(value)  # sparsity: 0.5
    if type(value) is int and float in known:
        return float(value)
    raise _other_kind(kind, value, where)


def within(name: str, value: Any, limits: Mapping[str, Any], where: str) -> None:
    """Raises RessaError that names `where` for a word that is not `among` the known ones, or a number out of range."""
    if isinstance(value, str) and limits["among"] and value not in limits["among"]:
        raise RessaError(f"{where}: {unknown(name, value, limits['among'])}")
    if type(value) not in (int, float):
        return
    where, above, least, most = f"{where}: {name}", limits["above"], limits["least"], limits["most"]
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


def _other_kind(kind: Any, value: Any, where: str) -> RessaError:
    names = " or ".join(WORDS[option] for option in options(kind) if option in WORDS)
    return RessaError(f"{where}: {_shown(value)} is not {names}")


def _shown(value: Any) -> str:
    """On one short line: an array has many."""
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"{text[:80]} ..."


def _spelled(value: Any) -> Any:
    """What Python callers may write otherwise than YAML: a path, a float of numpy."""
    if isinstance(value, PathLike):
        return str(value)
    return float(value) if isinstance(value, float) else value
