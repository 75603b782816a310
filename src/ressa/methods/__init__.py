"""The pruning methods, by name. A new one is one file and one line here."""

from __future__ import annotations

import inspect
from functools import partial, update_wrapper
from typing import Any, cast

from ressa.errors import RessaError, unknown
from ressa.inputs import Method
from ressa.methods.magnitude import magnitude
from ressa.methods.sparsegpt import sparsegpt
from ressa.methods.wanda import wanda

METHODS: dict[str, Method] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
}


def get(name: str, **settings: Any) -> Method:
    """The method called `name`, with those of its `settings` fixed that are not None; RessaError for unknown ones.

    >>> get("sparsegpt", damp=0.1).needs.__name__
    'Gram'
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    method = METHODS[name]
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given.keys() - inspect.signature(method).parameters.keys():
        raise RessaError(f"method '{name}' has no setting '{key}': leave it out")
    return cast(Method, update_wrapper(partial(method, **given), method)) if given else method
