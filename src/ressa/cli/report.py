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
        result = verb(folders, out)
    shown = f"{result['shown']} of {result['questions']} questions"
    size = f"{len(result['models'])} models, {shown}, {result['bytes'] / 1e6:.1f} MB"
    show(result, as_json, result["verdict"], f"{result['out']}: {size}; {result['markdown']} has its numbers")


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
        result = verb(folder, push_to_hub)
    show(result, as_json, f"card: {result['card']}", *([f"sent to {result['address']}"] if result["address"] else []))
