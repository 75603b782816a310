"""What commands take: arguments that several share, and an option for every field of a class of settings."""

from __future__ import annotations

import inspect as reflection
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from ressa.errors import RessaError
from ressa.pipeline.recipe import checked
from ressa.settings import SEEDS

Model = Annotated[str, typer.Argument(help="A model folder, a hub name, or `demo` for the model ressa carries.")]
_DATA = typer.Option(help="A folder with {split}.jsonl, or one .jsonl file.")
Data = Annotated[str, _DATA]
MaybeData = Annotated[str | None, _DATA]  # Typer looks for its words at the outermost type only
Out = Annotated[str, typer.Argument(help="The folder to write; must be new or empty.")]
Seed = Annotated[int, typer.Option(min=0, max=SEEDS, help="Draws the samples, the order and the adapters.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]


def told_apart(context: typer.Context, *known: str, refused: str) -> set[str]:
    """The options that the user gave to this command. RessaError if `refused` can honour only the `known` ones."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    for parameter in context.command.params:
        if parameter.name in given - set(known):
            raise RessaError(f"{parameter.opts[0]} has no effect with {refused}: leave one of them out")
    return given


def with_settings(command: Callable[..., None], without: str = "") -> Callable[..., None]:
    """Gives a command an option for every field (but one) of each parameter that is a class of settings.

    The command gets them as one checked object each; `without` one field (of which a verb takes several), the verb
    checks them together.
    """
    own = reflection.signature(command, eval_str=True).parameters.values()
    classes: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    names = {name: [f.name for f in fields(cls) if f.name != without] for name, cls in classes.items()}

    def wrapper(**given: Any) -> None:
        values = {name: {field: given.pop(field) for field in names[name]} for name in classes}
        made = {name: cls(**values[name]) for name, cls in classes.items()}
        whole = {name: checked(one, command.__name__) for name, one in made.items() if not hasattr(one, without)}
        command(**given, **made | whole)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.name not in classes]
    parameters += [option for name, cls in classes.items() for option in _options(cls, names[name])]
    wrapper.__signature__ = reflection.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _options(cls: Any, names: list[str]) -> list[reflection.Parameter]:
    kinds, kind = get_type_hints(cls), reflection.Parameter.KEYWORD_ONLY
    helped = {f.name: Annotated[kinds[f.name], typer.Option(help=f.metadata["help"])] for f in fields(cls)}
    defaults = {f.name: f.default for f in fields(cls)}
    return [reflection.Parameter(name, kind, default=defaults[name], annotation=helped[name]) for name in names]
