"""ressa data: one command a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ressa.cli.options import Json, Out, with_settings
from ressa.cli.terminal import bars, quiet, show
from ressa.preparation.settings import Prepare
from ressa.preparation.sources import SOURCES

app = typer.Typer(help="Write data as an ordinary folder: {split}.jsonl and pictures.", no_args_is_help=True)


@app.command()
def emoji(
    out: Out,
    train: Annotated[int, typer.Option(help="Scenes to train on.")] = 4000,
    validation: Annotated[int, typer.Option(help="Scenes to choose by.")] = 250,
    test: Annotated[int, typer.Option(help="Scenes to measure on, and as many never-together ones.")] = 500,
    questions: Annotated[int, typer.Option(help="Questions about each scene, at most.")] = 4,
    seed: Annotated[int, typer.Option(help="Draws everything.")] = 0,
) -> None:
    """Draw the embedded data: emoji scenes with questions and captions (OpenMoji art, CC BY-SA 4.0)."""
    from ressa.data.emoji import write

    with bars() as bar:
        write(
            out, train=train, validation=validation, test=test, questions=questions, seed=seed, progress=bar("drawing")
        )
    show({}, False, f"{Path(out)}: {train} + {validation} + {test} + {test} scenes")


def _data_command(name: str, what: str) -> None:
    """One command of `ressa data` for a source; all have the same settings."""

    def command(
        source: Annotated[str, typer.Argument(help="What was downloaded, or the name of a table.")],
        out: Out,
        settings: Prepare,
        images: Annotated[
            list[str] | None,
            typer.Option(help="A folder or .zip with the pictures that SOURCE names. May be repeated."),
        ] = None,
        as_json: Json = False,
    ) -> None:
        from ressa.preparation.verb import prepare

        with quiet(), bars() as bar:
            result = prepare(name, source, out, settings=settings, images=images or (), progress=bar)
        show(result, as_json, *_prepared(out, result))

    command.__name__, command.__doc__ = f"data {name}", f"Prepare {what}."
    app.command(name)(with_settings(command))


def _prepared(out: str, result: dict[str, Any]) -> Iterator[str]:
    pictures = result["pictures"]
    yield f"{Path(out)}: {', '.join(f'{n:,} records in {split}' for split, n in result['records'].items())}"
    yield f"pictures: {pictures['made']:,} of {pictures['asked']:,}"
    for what in ("unusable", "converted", "skipped"):
        if result[what]:
            counts = ", ".join(f"{n:,} {name}" for name, n in result[what].items())
            yield f"{what}: {counts}" + (" (named in report.csv)" if what != "skipped" else "")


for _name, _format in SOURCES.items():
    _data_command(_name, _format.title)


@app.command()
def check(
    folder: Annotated[str, typer.Argument(help="A folder that `ressa data` prepared.")], as_json: Json = False
) -> None:
    """Compare every file of a prepared folder with its SHA-256 in SHA256SUMS."""
    from ressa.preparation.sums import check as verb

    with bars() as bar:
        result = verb(folder, bar("checking"))
    sizes = f"{result['files']:,} files, {result['bytes']:,} bytes"
    show(result, as_json, f"{Path(folder)}: {sizes}, all as they were prepared")
