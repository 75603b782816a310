"""The pruning methods, by name. A new one is one file here, NAME.py with a function NAME.

What is not a method begins with an underscore: the help of `prune` lists the files too, without importing them.
"""

from __future__ import annotations

import inspect
from functools import partial, update_wrapper
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ressa.errors import RessaError, unknown
from ressa.methods._refit import refit as least_squares
from ressa.methods._spelling import checked, steps
from ressa.methods._spelling import split_methods as split_methods
from ressa.patterns import Pattern
from ressa.statistics import Gram, GramAndMoments, Method, Moments, needs

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
METHODS: dict[str, Method] = {name: getattr(import_module(f"ressa.methods.{name}"), name) for name in NAMES}
REFIT = "+refit"  # after a method's name: its zeros, and for them the best weights


def get(name: str, seed: int | None = None, shrinkage: float | None = None, **settings: Any) -> Method:
    """The method called `name`, with those of its `settings` fixed that are not None; RessaError for unknown ones.

    "wanda+refit" is Wanda's zeros with the least-squares answer for them; so with any other. Its own parameters stand
    in brackets: "ria(power=0.3)". `seed` is for a method that draws by lot; others ignore it. `shrinkage` is that
    of the Gram (`ressa.statistics.Gram`).

    >>> get("sparsegpt", damp=0.1).needs.__name__, get("ria(power=0.3)+refit").needs.__name__
    ('Gram', 'Gram')
    """
    (first, own), *rest = steps(name)
    if first not in METHODS:
        raise unknown("method", first, METHODS)
    if [step for step, _ in rest] not in ([], ["refit"]):
        raise RessaError(f"method '{name}': only +refit may follow a method, and once")
    method = METHODS[first]
    drawn = {"seed": seed} if seed is not None and "seed" in _settings(method) else {}
    if fixed := drawn | checked(first, method, own):
        method = _fixed(method, **fixed)
    if rest:
        method = _refitted(method, **checked("refit", least_squares, rest[0][1]))
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given.keys() - _settings(method):
        raise RessaError(f"method '{name}' has no setting '{key}': leave it out")
    for key in given.keys() & (rest[0][1] if rest else own).keys():
        raise RessaError(f"method '{name}': {key} is told twice, here and as a setting of its own; leave one out")
    method = _fixed(method, **given) if given else method
    return method if shrinkage is None else _shrunk(name, method, shrinkage)


def check_moving(name: str, asymmetric: float) -> None:
    """Raises RessaError if weights are to be aimed anew (`asymmetric`) for a method that moves none."""
    if asymmetric and not issubclass(get(name).needs or object, Gram):
        raise RessaError(f"asymmetric moves weights, which method '{name}' leaves as they are: use admm")


def _settings(method: Method) -> set[str]:
    return set(inspect.signature(method).parameters)


def _fixed(method: Method, **given: Any) -> Method:
    return cast(Method, update_wrapper(partial(method, **given), method))


def _shrunk(name: str, method: Method, share: float) -> Method:
    if not issubclass(method.needs or object, Gram):
        raise RessaError(f"method '{name}' reads no Gram, so nothing shrinks: leave shrinkage out")

    def over(weight_OI: Tensor, inputs: Gram, pattern: Pattern, **settings: Any) -> Tensor:
        inputs.shrink(share)
        return method(weight_OI, inputs, pattern, **settings)

    return cast(Method, update_wrapper(over, method))


def _refitted(method: Method, **fixed: Any) -> Method:
    statistic = GramAndMoments if method.needs is Moments else Gram

    @needs(statistic, by_row=method.by_row, bare_weights=method.bare_weights)
    def both(weight_OI: Tensor, inputs: Gram, pattern: Pattern, *, damp: float | None = None) -> Tensor:
        given = fixed if damp is None else fixed | {"damp": damp}
        return least_squares(weight_OI, method(weight_OI, inputs, pattern), inputs, **given)

    return both
