"""What commands take: arguments that several share, and an option for every field of a class of settings."""

from __future__ import annotations

import inspect as reflection
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ressa.recipe import build
from ressa.settings import SEEDS

Model = Annotated[str, typer.Argument(help="A model folder, a hub name, or `demo` for the model ressa carries.")]
_DATA = typer.Option(help="A folder with {split}.jsonl, or one .jsonl file.")
Data = Annotated[str, _DATA]
MaybeData = Annotated[str | None, _DATA]  # Typer looks for its words at the outermost type only
Out = Annotated[Path, typer.Argument(help="The folder to write; must be new or empty.")]
Seed = Annotated[int, typer.Option(min=0, max=SEEDS, help="Draws the samples, the order and the adapters.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]


def with_settings(cls: type[Any], without: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for every field of `cls` (but one), passed on as one checked object, `settings`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        kinds = get_type_hints(cls)
        told = [f for f in fields(cls) if f.name != without]
        own = [p for p in reflection.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        options = [
            reflection.Parameter(
                f.name,
                reflection.Parameter.KEYWORD_ONLY,
                default=f.default,
                annotation=Annotated[kinds[f.name], typer.Option(help=f.metadata["help"])],
            )
            for f in told
        ]

        def wrapper(**given: Any) -> None:
            settings = build(cls, {f.name: given.pop(f.name) for f in told}, command.__name__)
            command(**given, settings=settings)

        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        parameters = [p.replace(kind=reflection.Parameter.KEYWORD_ONLY) for p in own] + options
        wrapper.__signature__ = reflection.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate
