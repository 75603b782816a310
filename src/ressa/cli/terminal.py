"""What commands show: progress bars, results for people or machines, and nothing that libraries would say."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ressa.cli.lines import Lines
from ressa.errors import RessaWarning, printable


@contextmanager
def bars() -> Iterator[Callable[[str], Callable[[int, int | None, str], None]]]:
    """Progress bars with time left, on stderr: bar("pruning") gives a callable (done, total, what).

    They go when there is an error to be read. Where stderr is no terminal, plain lines stand for them.
    """
    from rich import progress as rich
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stderr)  # this very one, even if stderr leads elsewhere meanwhile
    if not console.is_terminal:
        yield Lines()
        return

    progress = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[what]}", markup=False),
        console=console,
    )
    shown = False

    def bar(title: str) -> Callable[[int, int | None, str], None]:
        task = progress.add_task(escape(printable(title)), total=None, what="")

        def update(done: int, total: int | None, what: str) -> None:
            progress.update(task, completed=done, total=total, what=printable(what) if what != title else "")

        return update

    progress.start()
    try:
        yield bar
        shown = bool(progress.task_ids)
    finally:
        progress.live.transient = not shown
        (progress.stop if shown else progress.live.stop)()  # the first adds an empty line where there is no terminal


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries keep their own bars and notes to themselves; ours are enough. Our warnings are a line each."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    before, hub_before, bars_before = logging.get_verbosity(), hub.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub.set_verbosity_error()  # it tells of every retry
    logging.disable_progress_bar()
    show_others = warnings.showwarning

    def show_ours(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, RessaWarning):
            print(f"ressa: warning: {printable(message)}", file=sys.stderr)
        else:
            show_others(message, category, *where, **more)

    warnings.showwarning = show_ours
    try:
        yield
    finally:
        warnings.showwarning = show_others
        logging.set_verbosity(before)
        hub.set_verbosity(hub_before)
        if bars_before:
            logging.enable_progress_bar()


def show(result: dict[str, Any], as_json: bool, *lines: Any) -> None:
    """Print the result for machines, or its summary for people."""
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console

    for line in lines:
        if isinstance(line, str):
            print(printable(line))  # rich would wrap it, and read [brackets] in names as colours
        else:
            Console().print(line, highlight=False)
