"""Methods as users write them: `admm`, `wanda+refit`, and with parameters of their own `ria(power=0.3)`."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ressa.errors import RessaError, unknown

STEP = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")
WORDS = {int: "a whole number", float: "a number", str: "a name"}


def steps(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The names in `text`, each with its parameters; their kinds and whether they exist is not known here.

    >>> steps("ria(power=0.3)+refit")
    [('ria', {'power': 0.3}), ('refit', {})]

    Raises:
        RessaError: text of another form.
    """
    found = []
    for part in text.split("+"):
        match = STEP.fullmatch(part)
        if not match:
            raise RessaError(f"method '{text}' is not of the form NAME, NAME(power=0.3) or NAME+refit")
        pairs = [pair for pair in (match[2] or "").split(",") if pair.strip()]
        found.append((match[1], dict(_pair(pair, text) for pair in pairs)))
    return found


def split_methods(text: str) -> list[str]:
    """Several methods with commas between them; those within brackets part parameters.

    >>> split_methods("wanda, admm(damp=0.1, iterations=40)")
    ['wanda', 'admm(damp=0.1, iterations=40)']
    """
    return [name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip()]


def checked(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` as the keyword arguments of `function`, each of the kind of its default.

    Raises:
        RessaError: a parameter that it does not have, one of another kind, a number that is negative or not finite.
    """
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings = {}
    for key, value in given.items():
        if key not in defaults:
            raise (
                unknown(f"parameter of {name}", key, defaults)
                if defaults
                else RessaError(f"method '{name}' has no parameters: leave '{key}' out")
            )
        kind = type(defaults[key])
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise RessaError(f"method '{name}': {key}: {value!r} is not {WORDS[kind]}")
        if kind is not str and not (value >= 0 and math.isfinite(value)):
            raise RessaError(f"method '{name}': {key}: {value} must be finite and at least 0")
        settings[key] = value
    return settings


def _pair(pair: str, text: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in pair.partition("="))
    if not equals or not key.isidentifier() or not value:
        raise RessaError(f"method '{text}': '{pair.strip()}' is not of the form power=0.3")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
