"""How settings are declared, checked and offered: each once, as a field of the dataclass of its verb.

The command line, recipes, the functions of `ressa` and the tables in `docs/` all come from these fields.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from os import PathLike
from typing import Any, Union, get_args, get_origin, get_type_hints

from ressa.errors import RessaError, unknown

SEEDS = 2**32 - 1  # numpy, which transformers seeds too, takes no larger one
Progress = Callable[[int, int, str], None]  # called with (done, in all, what)
KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    among: tuple[str, ...] | None = None,
) -> Any:
    """A field with its default, the words that `--help` and the docs print, and its limits. Whole numbers are >= 1."""
    limits = {"above": above, "least": least, "most": most, "among": among}
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Runtime:
    """Where everything is computed, and in which number format."""

    device: str = setting("auto", "Where: auto (the first GPU there is, else the CPU), cpu, cuda, cuda:1, xpu, mps.")
    dtype: str = setting(
        "auto",
        "What products are computed in, whatever the folder stores: auto (what it stores where the device multiplies "
        "that natively, else float32), float32, bfloat16, float16. What is written keeps the folder's dtype.",
        among=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int | None = setting(None, "CPU threads of the process. [as torch chooses]")

    def __post_init__(self) -> None:
        check(self, "runtime")


def check(settings: Any, verb: str = "", rules: str = "") -> None:
    """Every field of a frozen dataclass as its kind, and within its limits; what stands for it in Python is converted.

    `rules` names the module whose `check` knows what the fields may not be together: it is imported here, when there is
    something to check, for it may load torch.

    Raises:
        RessaError: one line that names `verb` and the field.
    """
    kinds, place = get_type_hints(type(settings)), f"{verb}: " if verb else ""
    for f in fields(settings):
        value = as_kind(kinds[f.name], getattr(settings, f.name), f"{place}{f.name}")
        _check_limits(f.name, value, f.metadata, place)
        object.__setattr__(settings, f.name, value)
    if rules:
        with naming(verb):
            import_module(rules).check(settings)


def check_paths(verb: str, **paths: Any) -> None:
    """Raises RessaError for an argument that is no text and no path."""
    for name, value in paths.items():
        if not isinstance(value, str | PathLike):
            raise RessaError(f"{verb}: {name}: {_short(value)} is neither a text nor a path")


def check_instance(cls: type[Any], value: Any, verb: str) -> None:
    """Raises RessaError for what is no object of a class of settings."""
    if not isinstance(value, cls):
        raise RessaError(f"{verb}: {_short(value)} is no {cls.__name__}: make one, ressa.{cls.__name__}(...)")


def build(cls: type[Any], values: Any, where: str) -> Any:
    """An object of a class of settings from a mapping; a field that is such a class is built from a mapping in turn.

    Raises:
        RessaError: naming `where`: an unknown key, with the nearest right one, and what the class refuses.
    """
    _check_keys(cls, values, where)  # all of them, before a class imports what it checks with
    sections = {name: section for name, kind in get_type_hints(cls).items() if (section := _section(kind))}
    made = {
        key: build(sections[key], value, where) if key in sections and not isinstance(value, sections[key]) else value
        for key, value in values.items()
    }
    with naming(where):
        return cls(**made)


def _check_keys(cls: type[Any], values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise RessaError(f"{where}: must be `key: value` lines, not {type(values).__name__}")
    kinds = get_type_hints(cls)
    for key, value in values.items():
        if key not in kinds:
            raise RessaError(f"{where}: {unknown('key', str(key), kinds)}")
        section = _section(kinds[key])
        if section and value is None:
            raise RessaError(f"{where}: {key}: has nothing in it; write {{}} for its defaults, or leave the line out")
        if section and not isinstance(value, section):
            _check_keys(section, value, f"{where}: {key}")


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Errors within name the place of the setting they are about."""
    try:
        yield
    except RessaError as error:
        raise RessaError(f"{where}: {error}") from None


def flattened(
    function: Callable[..., Any], annotate: Callable[[Any, Any], Any] = lambda f, kind: kind, without: str = ""
) -> tuple[inspect.Signature, dict[str, tuple[Any, bool]]]:
    """The signature of `function` with the fields of settings in the place of each parameter that takes settings.

    A parameter of kind `Callable[..., CLASS]` takes what makes settings when it is given the field `without`, of which
    the function takes several values; this field is left out.

    Returns:
        (the signature, {parameter: (its class, whether it is such a callable)})
    """
    parameters, classes = [], {}
    for p in inspect.signature(function, eval_str=True).parameters.values():
        cls = get_args(p.annotation)[-1] if get_origin(p.annotation) is Callable else p.annotation
        if not is_dataclass(cls):
            parameters.append(p)
            continue
        classes[p.name], kinds = (cls, cls is not p.annotation), get_type_hints(cls)
        parameters += [
            p.replace(name=f.name, kind=p.KEYWORD_ONLY, default=f.default, annotation=annotate(f, kinds[f.name]))
            for f in fields(cls)
            if not (f.name == without and classes[p.name][1])
        ]
    return inspect.Signature(sorted(parameters, key=lambda p: p.kind)), classes


def gathered(values: Mapping[str, Any], classes: Mapping[str, tuple[Any, bool]]) -> dict[str, Any]:
    """`values`, with what `flattened` took apart put together again."""
    whole: dict[str, Any] = {}
    taken: set[str] = set()
    for name, (cls, several) in classes.items():
        own = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        whole[name] = functools.partial(cls, **own) if several else cls(**own)
        taken |= own.keys()
    return {key: value for key, value in values.items() if key not in taken} | whole


def by_keywords(verb: Callable[..., Any], without: str = "") -> Callable[..., Any]:
    """`verb`, which takes objects of settings, as a function that takes their fields as keywords."""
    signature, classes = flattened(verb, without=without)

    @functools.wraps(verb)
    def function(*args: Any, **keywords: Any) -> Any:
        try:
            given = signature.bind(*args, **keywords)
        except TypeError as error:
            raise TypeError(f"{verb.__name__}(): {error}") from None
        return verb(**gathered(given.arguments, classes))

    function.__signature__ = signature  # type: ignore[attr-defined]
    explained = [f"    {f.name}: {f.metadata['help']}" for cls, _ in classes.values() for f in fields(cls)]
    function.__doc__ = "\n".join([inspect.cleandoc(verb.__doc__ or ""), "", "Settings:", *explained])
    return function


def as_kind(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, where that loses nothing. Raises RessaError that names `where`."""
    known, value = _options(kind), _from_python(value)
    if value is None and type(None) not in known:
        raise RessaError(f"{where}: has no value")
    if value is None or type(value) in known:
        return value
    if type(value) in (int, float) and str in known:
        return str(value)  # sparsity: 0.5
    if type(value) is int and float in known:
        return float(value)
    names = " or ".join(KINDS[option] for option in known if option in KINDS)
    if not names:
        check_instance(_section(kind), value, where)
    raise RessaError(f"{where}: {_short(value)} is not {names}")


def _check_limits(name: str, value: Any, limits: Mapping[str, Any], verb: str) -> None:
    """A word that is not `among` the known ones, or a number out of range."""
    if isinstance(value, str) and limits.get("among") and value not in limits["among"]:
        raise RessaError(f"{verb}{unknown(name, value, limits['among'])}")
    if type(value) not in (int, float) or not limits:
        return
    where, above, least, most = f"{verb}{name}", limits["above"], limits["least"], limits["most"]
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


def _options(kind: Any) -> tuple[Any, ...]:
    """The kinds in `int | None`; of a bare kind itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _section(kind: Any) -> Any:
    """The class of settings among the options of a kind, if there is one."""
    return next((option for option in _options(kind) if is_dataclass(option)), None)


def _from_python(value: Any) -> Any:
    """What Python callers may write otherwise than YAML: a path, a float of numpy, a mapping, a torch.device."""
    if isinstance(value, PathLike) or type(value).__name__ == "device":
        return str(value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}={entry}" for key, entry in value.items())
    return float(value) if isinstance(value, float) else value


def _short(value: Any) -> str:
    """On one short line: an array has many."""
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"{text[:80]} ..."
