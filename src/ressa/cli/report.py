"""`report` and `card`: what folders hold, for people."""

from __future__ import annotations

from typing import Annotated

import typer

from ressa.cli.options import Json
from ressa.cli.terminal import quiet, show
from ressa.errors import check_extra


def register(app: typer.Typer) -> None:
    """Adds the two commands."""
    app.command()(report)
    app.command()(card)


def report(
    folders: Annotated[list[str], typer.Argument(help="Of models, runs, comparisons, scores; or above many of them.")],
    out: Annotated[
        str, typer.Option("--out", "-o", help="The page; the same as .md is written beside it.")
    ] = "report.html",
    as_json: Json = False,
) -> None:
    """Everything that FOLDERS hold as one page that opens from disk: verdict, tables, figures, pictures, recipe.

    **Example:** `ressa report demo-out/ -o report.html`
    """
    check_extra("report")
    from ressa.reporting.page.page import report as verb

    with quiet():
        told = verb(folders, out)
    size = (
        f"{len(told['models'])} models, {told['shown']} of {told['questions']} questions, {told['bytes'] / 1e6:.1f} MB"
    )
    show(told, as_json, told["verdict"], f"{told['out']}: {size}; {told['markdown']} has its numbers")


def card(
    folder: Annotated[str, typer.Argument(help="A folder that prune or repair wrote.")],
    push_to_hub: Annotated[str | None, typer.Option(help="Send the folder there too: user/name on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Write a model card (README.md) into FOLDER: base model, recipe, zeros of each part, scores, how to load it.

    **Example:** `ressa card demo-out/repaired`
    """
    from ressa.reporting.card import card as verb

    with quiet():
        told = verb(folder, push_to_hub)
    show(told, as_json, f"card: {told['card']}", *([f"sent to {told['address']}"] if told["address"] else []))
