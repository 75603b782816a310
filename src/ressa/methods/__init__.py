"""The pruning methods, by name. A new one is one file and one line here."""

from __future__ import annotations

import inspect
from functools import partial, update_wrapper
from typing import Any, cast

from torch import Tensor

from ressa.errors import RessaError, unknown
from ressa.inputs import Gram, GramAndMoments, Method, Moments, needs
from ressa.methods.admm import admm
from ressa.methods.alps import alps
from ressa.methods.dsnot import dsnot
from ressa.methods.magnitude import magnitude
from ressa.methods.random import random
from ressa.methods.refit import refit
from ressa.methods.ria import ria
from ressa.methods.sparsegpt import sparsegpt
from ressa.methods.wanda import wanda
from ressa.patterns import Pattern

METHODS: dict[str, Method] = {
    "magnitude": magnitude,
    "random": random,
    "wanda": wanda,
    "ria": ria,
    "dsnot": dsnot,
    "sparsegpt": sparsegpt,
    "admm": admm,
    "alps": alps,
}


REFIT = "+refit"  # after a method's name: its zeros, and for them the best weights


def get(name: str, **settings: Any) -> Method:
    """The method called `name`, with those of its `settings` fixed that are not None; RessaError for unknown ones.

    "wanda+refit" is Wanda's zeros with the least-squares answer for them; so with any other.

    >>> get("sparsegpt", damp=0.1).needs.__name__, get("wanda+refit").needs.__name__
    ('Gram', 'Gram')
    """
    first = name.removesuffix(REFIT)
    if first not in METHODS:
        raise unknown("method", first, METHODS)
    method = METHODS[first] if first == name else _refitted(METHODS[first])
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given.keys() - inspect.signature(method).parameters.keys():
        raise RessaError(f"method '{name}' has no setting '{key}': leave it out")
    return cast(Method, update_wrapper(partial(method, **given), method)) if given else method


def _refitted(method: Method) -> Method:
    @needs(GramAndMoments if method.needs is Moments else Gram, by_row=method.by_row)
    def both(weight_OI: Tensor, inputs: Gram, pattern: Pattern, *, damp: float = 0.01) -> Tensor:
        return refit(weight_OI, method(weight_OI, inputs, pattern), inputs, damp=damp)

    return both
