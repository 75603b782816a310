"""ressa study: the options of a study, and what is shown of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ressa.cli.lines import Lines
from ressa.cli.options import with_settings
from ressa.cli.terminal import bars, quiet, show
from ressa.errors import RessaError, check_extra
from ressa.settings import Runtime

if TYPE_CHECKING:
    from ressa.pipeline.study import Study


def register(app: typer.Typer) -> None:
    """Adds the command to the others."""
    app.command()(with_settings(study))


def study(
    study: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or one that ressa carries: allocation, modalities, performance, ablation, transfer."
        ),
    ],
    runtime: Runtime,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine, which share its cores.")] = 1,
    shard: Annotated[
        str | None,
        typer.Option(help="I/N: only every N-th cell from the I-th on, for a job array; all jobs share the folder."),
    ] = None,
    then_others: Annotated[
        bool, typer.Option("--then-others", help="With --shard: then the cells that other jobs have not finished.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(help="The address of a Ray cluster that shares the folder; local starts one of --workers."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and list the cells.")] = False,
) -> None:
    """Make many runs of one recipe with values replaced, and one table and plots of them.

    A study file has a `recipe`; an `out` folder; and what is replaced: `seeds`, a `grid` of lists, `lines` of values
    that go together, named `variants`. Each combination is a cell: OUT/cells/NAME/recipe.yaml, which `ressa run` makes
    too. Cells that are finished rest, stages that cells have in common are made once, a cell that fails ends no other
    one, and a call that was stopped is given again.

    **Example:** `ressa study performance`; `ressa study my.yaml --workers 4`; in a Slurm array of 1-8
    `ressa study my.yaml --shard $SLURM_ARRAY_TASK_ID/8`
    """
    if shard and (workers > 1 or ray):
        raise RessaError(f"--shard has no effect with {'--ray' if ray else '--workers'}: leave one of them out")
    if then_others and not shard:
        raise RessaError("--then-others has no effect without --shard: leave it out")
    check_extra("report")
    check_extra("data", "pyarrow")
    from ressa.pipeline.cells import check_study
    from ressa.pipeline.spread import shipped, threads_each
    from ressa.pipeline.study import read_study

    path = shipped(study)
    parts = workers > 1 or ray
    if parts and not runtime.threads:
        runtime = Runtime(runtime.device, runtime.dtype, threads_each(workers))
    with quiet():
        parsed = read_study(path, runtime)
        if dry_run:
            show({}, False, *(f"{cell.name}" for cell in parsed.cells), f"{len(parsed.cells)} cells")
            return
        check_study(parsed)
        _make(parsed, path, runtime, workers, shard, then_others, ray)
        _tell(parsed, whole=not shard)


def _make(
    study: Study, path: Path, runtime: Runtime, workers: int, shard: str | None, then_others: bool, ray: str | None
) -> None:
    from ressa.pipeline import cells as engine
    from ressa.pipeline import spread

    mine = engine.shard(study.cells, shard) if shard else study.cells
    with bars() as bar:
        progress: Any = bar("study")
        if ray:
            task = spread.Task(str(Path.cwd()), str(path), runtime, Lines)
            spread.on_ray(study, ray, task, workers, runtime.threads or 1, progress)
        elif workers > 1:
            words = ["study", str(path), *_options(runtime)]
            spread.on_processes(study, words, workers, runtime.threads or 1, progress)
        else:
            engine.make(study, spread.others_too(study.cells, mine) if then_others else mine, progress, Lines)


def _options(runtime: Runtime) -> list[str]:
    given = {name: value for name, value in vars(runtime).items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def _tell(study: Study, whole: bool) -> None:
    """Where the table and the plots are; then what failed. A shard is not the whole, and tells of the table only."""
    from ressa.pipeline.cells import report_failures
    from ressa.pipeline.results import check_measure, results, write_table
    from ressa.reporting.study import plots, table

    write_table(study)
    rows = results(study)
    if whole:
        show({}, False, table(rows, study.columns))
    show({}, False, f"table: {study.out / 'results.csv'} and .parquet")
    if whole:
        for plot in plots(rows, study.columns, study.out):
            show({}, False, f"plot: {plot}")
        show({}, False, _page(study))
        report_failures(study)
        check_measure(study, rows)


def _page(study: Study) -> str:
    """The page of the finished cells of the first seed: all seeds are in the table, and a page has 2 MB at most."""
    from ressa.pipeline.cells import finished
    from ressa.reporting.page.page import report

    seed = study.cells[0].recipe.seed
    folders = [cell.folder for cell in study.cells if cell.recipe.seed == seed and finished(cell)]
    try:
        return f"page: {report(folders, study.out / 'report.html')['out']} (seed {seed})"
    except RessaError as error:
        return f"no page: {error}"
