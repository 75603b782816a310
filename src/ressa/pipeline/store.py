"""What several runs have in common is made once: finished stages by their keys, in one folder, for all who need them.

A stage's key names no path, so a prune of one run is the prune of every run that asks for the same. Runs get it by hard
links: the same bytes in several folders.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ressa.files.folders import partial
from ressa.files.locks import waiting

UNSHARED = (".cache.jsonl",)  # a file that a later call would write on in its place


@dataclass(frozen=True)
class Store:
    """The folder of finished stages. Several processes may use one."""

    root: Path

    def place(self, key: str) -> Path:
        return self.root / key

    def made(self, key: str, folder: Path, proof: str, make: Callable[[], object], cache: Path | None = None) -> None:
        """`folder`, made by `make` or by whoever made the stage of this `key` before; who comes second waits.

        `cache`: a folder that stages of several keys share, and that the first of them makes; until it is there the
        others wait too.
        """
        place = self.place(key)
        with ExitStack() as locks:
            locks.enter_context(waiting(self.root / f"{key}.lock", (place / proof).is_file))
            if (place / proof).is_file():
                _link(place, folder)
                return
            if cache is not None:
                locks.enter_context(waiting(self.root / f"{cache.name}.lock", (cache / "about.json").is_file))
            make()
            _link(folder, place)


def _link(source: Path, target: Path) -> None:
    """`target` appears whole, with the files of `source`; what stood there was unfinished."""
    with partial(target.absolute()) as folder:
        for file in source.rglob("*"):
            there = folder / file.relative_to(source)
            if file.is_dir():
                there.mkdir(exist_ok=True)
            elif not file.name.endswith(UNSHARED):
                there.parent.mkdir(parents=True, exist_ok=True)
                _link_file(file, there)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(folder, target)


def _link_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
