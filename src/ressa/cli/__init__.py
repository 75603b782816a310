"""The command line: one sub-command a verb, thin. Options are those of `ressa.settings`; heavy imports wait inside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ressa.cli import bench as bench_command
from ressa.cli import data as data_commands
from ressa.cli import export as export_commands
from ressa.cli import report as report_commands
from ressa.cli import study as study_command
from ressa.cli.exits import carry_out
from ressa.cli.options import Data, Json, MaybeData, Model, Out, given_options, with_settings
from ressa.cli.terminal import bars, quiet, show
from ressa.errors import RessaError, check_extra
from ressa.evaluation.settings import Evaluate
from ressa.files.paths import path_of
from ressa.inspection.settings import Plan
from ressa.pipeline.recipe import Recipe, read_recipe
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair
from ressa.settings import Runtime

app = typer.Typer(
    name="ressa",
    help="Prune vision-language models, repair them, and prove what it did. MODEL is a folder, a hub name, or `demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(data_commands.app, name="data")
report_commands.register(app)
study_command.register(app)
export_commands.register(app)
bench_command.register(app)


def main() -> None:
    """The entry point: what ressa refuses is one line on stderr and exit code 2."""
    sys.exit(carry_out(lambda: app(standalone_mode=False, prog_name="ressa")))


@app.command()
@with_settings
def inspect(
    context: typer.Context,
    model: Model,
    settings: Plan,
    sparsity: Annotated[str, typer.Option(help="The pattern to plan for: 2:4, 50%, ...")] = "2:4",
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="From the config alone (MODEL may be a config.json): sizes, and the memory and work of pruning and "
            "repair. The options below go with it.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show parts, blocks, linears, parameters and zeros; what would be pruned, what not, and why.

    **Example:** `ressa inspect demo --plan --memory 24GiB --gflops 100`
    """
    if plan:
        from ressa.inspection.plan import plan as verb
        from ressa.reporting.plan_table import tables

        with quiet():
            result = verb(model, sparsity, settings=settings)
    else:
        from ressa.inspection.verb import inspect as look
        from ressa.reporting.inspection import tables

        given_options(context, "model", "sparsity", "as_json", refused="without --plan: add it")
        with quiet():
            result = look(model, sparsity)
    show(result, as_json, *tables(result))


@app.command()
@with_settings
def prune(
    model: Model,
    out: Out,
    settings: Prune,
    runtime: Runtime,
    data: MaybeData = None,
    as_json: Json = False,
) -> None:
    """Prune MODEL to a pattern and write it to OUT, which loads with plain transformers.

    **Example:** `ressa prune demo out/ --data data/ --method wanda --sparsity 2:4`
    """
    from ressa.parallel import rank
    from ressa.pruning.verb import prune as verb

    first = rank() == 0  # of several processes one tells
    with quiet(), bars() if first else nullcontext() as bar:
        progress = bar("pruning") if bar else None
        result = verb(model, out, data=data, settings=settings, runtime=runtime, progress=progress)
    if not first:
        return
    parts = (_part(name, part) for name, part in result["parts"].items() if part["matrices"])
    show(result, as_json, *parts, *_allotted(result["allocation"], result["together"]))


def _part(name: str, part: dict[str, Any]) -> str:
    return f"{name}: {part['sparsity']:.1%} of {part['weights']:,} weights in {part['matrices']} matrices are zero"


def _allotted(allocation: dict[str, Any], together: dict[str, Any]) -> Iterator[str]:
    """How zeros were shared out, unless every matrix got the same."""
    sparsity, dense = allocation.get("sparsity"), allocation.get("kept_dense")
    if sparsity and allocation["name"] != "uniform":
        low, high = min(sparsity, key=sparsity.__getitem__), max(sparsity, key=sparsity.__getitem__)
        yield f"{allocation['name']}: from {sparsity[low]:.1%} ({low}) to {sparsity[high]:.1%} ({high})"
    if dense:
        yield f"kept dense: {', '.join(dense)}"
    if sparsity or dense:
        yield f"together: {together['sparsity']:.2%}, {together['zeros']:,} of {together['weights']:,} weights"


@app.command()
@with_settings
def repair(
    pruned: Annotated[str, typer.Argument(help="The folder of a pruned model.")],
    out: Out,
    settings: Repair,
    runtime: Runtime,
    teacher: Annotated[str, typer.Option(help="The dense original: a folder, a hub name, or `demo`.")],
    data: Data,
    as_json: Json = False,
) -> None:
    """Train the weights that PRUNED kept until it answers as its dense original; no zero is lost, nothing is added.

    **Example:** `ressa repair pruned/ out/ --teacher demo --data data/ --steps 500`
    """
    from ressa.repairing.verb import repair as verb

    with quiet(), bars() as bar:
        where: dict[str, Any] = {"settings": settings, "runtime": runtime, "progress": bar("repairing")}
        result = verb(pruned, out, teacher=teacher, data=data, **where)
    asked = result.get("labels", {"left_out": 0})
    unended = f"; {asked['left_out']} answers of {teacher} were left out" if asked["left_out"] else ""
    show(
        result,
        as_json,
        f"{Path(out)}: repaired in {result['seconds']:.0f} s; every zero of {Path(pruned)} is still zero on disk"
        f"{unended}",
    )


@app.command()
@with_settings
def evaluate(
    context: typer.Context,
    model: Model,
    settings: Evaluate,
    runtime: Runtime,
    data: Annotated[
        str | None, typer.Option(help="The task's files: a folder, one file, a hub dataset; or {split}.jsonl.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="The dense model: adds the KL of MODEL's answers to it.")] = None,
    versus: Annotated[
        str | None, typer.Option(help="The --out of another model's evaluation: adds differences and their p.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Keep scores.json and every answer here; resumes there too.")] = None,
    lmms: Annotated[
        str | None, typer.Option(help="Instead, these tasks of lmms-eval, by its own names, with commas.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a task to MODEL: its scores with intervals, per kind and overall.

    **Example:** `ressa evaluate out/ --data data/ --against demo`; `ressa evaluate out/ --task vqav2 --data vqav2/`
    """
    if lmms is not None:
        from ressa.evaluation.lmms import evaluate as by_lmms

        given = given_options(
            context,
            "model",
            "lmms",
            "out",
            "limit",
            "batch_size",
            "device",
            refused="with --lmms: leave one of them out",
        )
        size = settings.batch_size if "batch_size" in given else None
        by_lmms(model, lmms, out=out, limit=settings.limit, batch_size=size, device=runtime.device)
        return
    from ressa.evaluation.verb import evaluate as verb
    from ressa.parallel import rank
    from ressa.reporting.scores import lines
    from ressa.reporting.table import by_kind

    if data is None:
        raise RessaError("evaluate: needs --data, where the records or the task's files are")
    first = rank() == 0  # of several processes one tells
    with quiet(), bars() if first else nullcontext() as bar:
        progress = bar("asking") if bar else None
        where: dict[str, Any] = {"settings": settings, "runtime": runtime, "progress": progress}
        result = verb(model, data=data, against=against, versus=versus, out=out, **where)
    result.pop("answers")
    if first:
        show(result, as_json, by_kind({Path(model).name or model: result}), *lines(result))


@app.command()
@partial(with_settings, without="method")
def compare(
    model: Model,
    data: Data,
    settings: Callable[..., Prune],
    runtime: Runtime,
    methods: Annotated[str, typer.Option(help="Names of pruning methods, with commas between them.")],
    out: Annotated[str, typer.Option(help="Where each method's model and scores go; resumes there.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this many questions. [all]")] = None,
    as_json: Json = False,
) -> None:
    """Prune MODEL by several methods, all else equal: each block's error, KL, score, time and memory; with a plot.

    **Example:** `ressa compare demo --data data/ --methods wanda,sparsegpt,admm --sparsity 2:4 --out compared/`
    """
    from ressa.methods import split_methods
    from ressa.pipeline.compare import compare as verb
    from ressa.reporting.comparison import plot, table

    check_extra("report")
    with quiet(), bars() as bar:
        where: dict[str, Any] = {"asked": Evaluate(limit=limit), "runtime": runtime, "progress": bar}
        result = verb(model, out, data=data, methods=split_methods(methods), settings=settings, **where)
    show(result, as_json, table(result))
    if not as_json:
        folder = path_of(out, "out")
        show({}, False, f"plot: {plot(result, folder / 'blocks.png')}", _page(folder))


@app.command()
@with_settings
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file; see the shipped ones in ressa/recipes.")],
    runtime: Runtime,
) -> None:
    """Carry out a recipe: prune, repair, evaluate. Stages that are finished are not run again."""
    _run(read_recipe(recipe).on(runtime))


@app.command()
@with_settings
def demo(
    runtime: Runtime,
    out: Annotated[str, typer.Option(help="Where everything goes.")] = "demo-out",
) -> None:
    """Everything on the embedded model, in minutes: dense, 2:4 by Wanda, repaired; with a table and a picture."""
    _run(replace(read_recipe(Path(__file__).parents[1] / "recipes" / "demo.yaml"), out=out).on(runtime))


def _run(recipe: Recipe) -> None:
    check_extra("report")
    from ressa.pipeline.run import data_of, out_of
    from ressa.pipeline.run import run as verb
    from ressa.reporting.picture import picture
    from ressa.reporting.table import by_kind, summary

    with quiet(), bars() as bar:
        result = verb(recipe, bar)
    show(result, False, summary(result))
    if recipe.evaluate:
        show(result, False, by_kind(result["scores"]))
        data, split = data_of(recipe), recipe.evaluate.split or "test"
        if recipe.evaluate.task == "folder" and (path := picture(result, data, split, out_of(recipe) / "answers.png")):
            show(result, False, f"picture: {path}")
    show(result, False, _page(out_of(recipe)))


def _page(out: Path) -> str:
    """Everything that a run's folder holds on one page, and the scores on the cards of its models."""
    from ressa.reporting.card import card
    from ressa.reporting.page.page import report

    with quiet():
        for manifest in sorted(out.glob("*/ressa.json")):
            card(manifest.parent)
        return f"page: {report([out], out / 'report.html')['out']}"
