"""What commands take: arguments that several share, and an option for every field of a class of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from ressa.errors import RessaError
from ressa.parallel import alike
from ressa.settings import flattened, gathered

Model = Annotated[str, typer.Argument(help="A model folder, a hub name, or `demo` for the model ressa carries.")]
_DATA = typer.Option(help="A folder with {split}.jsonl, or one .jsonl file.")
Data = Annotated[str, _DATA]
MaybeData = Annotated[str | None, _DATA]  # Typer looks for its words at the outermost type only
Out = Annotated[str, typer.Argument(help="The folder to write; must be new or empty.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]


def given_options(context: typer.Context, *known: str, refused: str) -> set[str]:
    """The options that the user gave to this command. RessaError if `refused` can honour only the `known` ones."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    for parameter in context.command.params:
        if parameter.name in given - set(known):
            raise RessaError(f"{parameter.opts[0]} has no effect {refused}")
    return given


def with_settings(command: Callable[..., None], without: str = "") -> Callable[..., None]:
    """Gives a command an option for every field of each parameter that takes settings, as `flattened` tells."""
    signature, classes = flattened(command, _option, without)

    def wrapper(**given: Any) -> None:
        with alike():
            made = gathered(given, classes)
        command(**made)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _option(field: Any, kind: Any) -> Any:
    return Annotated[kind, typer.Option(help=field.metadata["help"])]
