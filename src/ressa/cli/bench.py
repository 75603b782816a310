"""`bench`: what models take in bytes and in seconds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ressa.benching.settings import Bench
from ressa.cli.options import Json, MaybeData, with_settings
from ressa.cli.terminal import bars, quiet, show
from ressa.errors import check_extra
from ressa.files.paths import path_of
from ressa.settings import Runtime


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(with_settings(bench))


def bench(
    models: Annotated[list[str], typer.Argument(help="Model folders, or `demo`.")],
    settings: Bench,
    runtime: Runtime,
    against: Annotated[str | None, typer.Option(help="The dense model that the others are compared with.")] = None,
    data: MaybeData = None,
    out: Annotated[str | None, typer.Option(help="Keep bench.json and bench.png in this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Measure MODELS: bytes on disk and in RAM, load, prefill of a picture and a prompt, decode; and say what pays.

    **Example:** `ressa bench packed/ --against pruned/`
    """
    if out is not None:
        check_extra("report", "matplotlib")
    from ressa.benching.verb import bench as verb
    from ressa.reporting.bench import lines, plot, table

    with quiet(), bars() as bar:
        where: dict[str, Any] = {"settings": settings, "runtime": runtime, "progress": bar("measuring")}
        result = verb(models, against=against, data=data, out=out, **where)
    drawn = [] if out is None else [f"plot: {plot(result, path_of(out, 'out') / 'bench.png')}"]
    show(result, as_json, table(result), *lines(result), *drawn)
