"""`export`: packed and dense folders."""

from __future__ import annotations

from pathlib import Path

import typer

from ressa.cli.options import Json, MaybeData, Model, Out, with_settings
from ressa.cli.terminal import bars, quiet, show
from ressa.exporting.settings import Export
from ressa.files.text import format_bytes
from ressa.settings import Runtime


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(with_settings(export))


def export(
    model: Model,
    out: Out,
    settings: Export,
    runtime: Runtime,
    data: MaybeData = None,
    as_json: Json = False,
) -> None:
    """Write MODEL packed (kept weights and a bitmask, for ressa to load), dense again, or rounded for vLLM; verified.

    **Example:** `ressa export pruned/ packed/`; `ressa export pruned/ int4/ --values int4 --data data/`; `ressa export
    packed/ dense/ --format dense`
    """
    from ressa.exporting.verb import export as verb

    with quiet(), bars() as bar:
        result = verb(model, out, data=data, settings=settings, runtime=runtime, progress=bar("exporting"))
    done = result["export"]
    read, written = (done["bytes"][key] for key in ("read", "written"))
    sizes = f"{format_bytes(written)}, {written / read:.1%} of {format_bytes(read)}"
    left = [f"left dense: {', '.join(done['left_dense'])}"] if done["left_dense"] else []
    show(result, as_json, f"{Path(out)}: {len(done['linears'])} linears {done['format']}; {sizes}", *left)
