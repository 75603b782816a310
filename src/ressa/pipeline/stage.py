"""A stage is data: a verb, its settings, and where it reads and writes. Any process can carry it out.

A stage's key is a hash of its verb, of the settings that are not their defaults, and of the keys of the stages it
builds on. It stands in `stages/NAME.json` of the run's folder from the moment the stage begins. Where the file that
the verb writes last stands beside it, the stage is finished and not run again; a folder made with other settings is
never overwritten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from ressa.data.emoji import write as write_emoji
from ressa.errors import RessaError
from ressa.evaluation.blocks import held_out_errors
from ressa.evaluation.verb import evaluate
from ressa.files.folders import check_output, tidy_parents
from ressa.files.paths import path_of
from ressa.files.text import read_json, write_atomic
from ressa.pipeline.store import Store
from ressa.pruning.verb import prune
from ressa.repairing.verb import repair
from ressa.settings import Progress, Runtime


@dataclass(frozen=True)
class Stage:
    """One call of a verb.

    name: for people, the same for every run of its kind; verb: of `VERBS`.
    folder: what it writes; model, data, dense: what it reads (`dense` is the teacher, or what scores compare with).
    settings: an object of its verb's settings; seed: of what is drawn by a verb that has no settings.
    sources: what of the above decides what comes out, by the names a user gave; paths within the run do not.
    after: names of the stages it builds on.
    """

    name: str
    verb: str
    folder: Path
    model: str = ""
    data: str = ""
    dense: str | None = None
    settings: Any = None
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    sources: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def proof(self) -> Path:
        """The file that the verb writes last."""
        return self.folder / VERBS[self.verb].proof

    def key(self, below: Mapping[str, str]) -> str:
        """The hash, given the `below` keys of other stages. The device is not in it, nor what `auto` stands for."""
        dtype = {} if self.runtime.dtype == "auto" else {"dtype": self.runtime.dtype}
        about = [self.verb, self.sources, self.seed, _given(self.settings) | dtype, [below.get(n) for n in self.after]]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _given(settings: Any) -> dict[str, Any]:
    """The settings that are not their defaults: a setting that is new leaves the keys of old runs as they were."""
    known = fields(settings) if settings else ()
    return {f.name: value for f in known if (value := getattr(settings, f.name)) != f.default}


@dataclass(frozen=True)
class Verb:
    """How a stage is carried out, the file written last, and whether it takes a new folder only."""

    make: Callable[[Stage, Progress | None], Any]
    proof: str
    fresh: bool = False


def _data(stage: Stage, progress: Progress | None) -> None:
    write_emoji(stage.folder, seed=stage.seed, progress=progress)


def _prune(stage: Stage, progress: Progress | None) -> None:
    where: dict[str, Any] = {"settings": stage.settings, "runtime": stage.runtime, "progress": progress}
    prune(stage.model, stage.folder, data=stage.data, **where)


def _repair(stage: Stage, progress: Progress | None) -> None:
    where: dict[str, Any] = {"settings": stage.settings, "runtime": stage.runtime, "progress": progress}
    repair(stage.model, stage.folder, teacher=stage.dense or "", data=stage.data, **where)


def _evaluate(stage: Stage, progress: Progress | None) -> None:
    where: dict[str, Any] = {"settings": stage.settings, "runtime": stage.runtime, "progress": progress}
    evaluate(stage.model, data=stage.data, against=stage.dense, out=stage.folder, **where)


def _blocks(stage: Stage, progress: Progress | None) -> None:
    """The error of every block's output on held-out records."""
    split, runtime = stage.settings.split or "test", stage.runtime
    where: dict[str, Any] = {"split": split, "seed": stage.seed, "device": runtime.device, "dtype": runtime.dtype}
    errors = held_out_errors(stage.model, stage.dense or "", stage.data, **where)
    write_atomic(stage.proof, json.dumps(errors, indent=2) + "\n")


VERBS = {
    "data": Verb(_data, "README.txt", fresh=True),
    "prune": Verb(_prune, "ressa.json", fresh=True),
    "repair": Verb(_repair, "ressa.json", fresh=True),
    "evaluate": Verb(_evaluate, "scores.json"),
    "blocks": Verb(_blocks, "blocks.json"),
}


def carry_out(
    stages: Sequence[Stage],
    out: Path,
    progress: Callable[[str], Progress] | None = None,
    check: Callable[[], None] = lambda: None,
    store: Store | None = None,
) -> list[str]:
    """Makes every stage that is not finished yet, after `check`; returns the names of those it made.

    `store`: has the stages that other runs finished, and gets those of this one.

    Raises:
        RessaError: folders that other settings made or that stand in the way, before anything is done.
    """
    keys = keys_of(stages)
    notes = {stage.name: read_json(_note(stage, out), {}).get("key") for stage in stages}
    changed = [s for s in stages if notes[s.name] not in (None, keys[s.name]) and s.folder.exists()]
    if changed:
        folders = ", ".join(str(stage.folder) for stage in changed)
        raise RessaError(f"{folders}: made with other settings; name another `out`, or delete this first")
    todo = [s for s in stages if notes[s.name] != keys[s.name] or not s.proof.is_file()]
    for stage in todo:
        if VERBS[stage.verb].fresh:
            check_output(stage.folder)
    if todo:
        check()
    for stage in todo:
        with _begun(stage, keys[stage.name], out):
            make = partial(VERBS[stage.verb].make, stage, progress(stage.name) if progress else None)
            if store:
                store.made(keys[stage.name], stage.folder, stage.proof.name, make, _cache(stage))
            else:
                make()
    return [stage.name for stage in todo]


def _cache(stage: Stage) -> Path | None:
    """The folder that a stage may make besides its own."""
    folder = getattr(stage.settings, "teacher_cache", None)
    return path_of(folder, "teacher_cache") if folder else None


def adopt(stages: Sequence[Stage], out: Path) -> None:
    """Notes for the stages that a run of ressa 0.1 before November 2026 finished, which kept them all in run.json."""
    ledger, keys = read_json(out / "run.json", {}), keys_of(stages)
    for stage in stages:
        if stage.name in ledger and stage.proof.is_file() and not _note(stage, out).is_file():
            write_atomic(_note(stage, out), json.dumps({"key": keys[stage.name]}) + "\n")


def keys_of(stages: Sequence[Stage]) -> dict[str, str]:
    """The key of every stage, in order; a stage that is not there has none."""
    keys: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = stage.key(keys)
    return keys


def _note(stage: Stage, out: Path) -> Path:
    """The file that holds the key with which the stage was begun."""
    return out / "stages" / f"{stage.name}.json"


@contextmanager
def _begun(stage: Stage, key: str, out: Path) -> Iterator[None]:
    """The key stands before the verb begins, so that a kill loses nothing; a stage that fails leaves none.

    A proof that stands before is not this stage's: then the key comes only behind the verb.
    """
    note, text, stale = _note(stage, out), json.dumps({"key": key}) + "\n", stage.proof.is_file()
    with tidy_parents(note):
        if not stale:
            write_atomic(note, text)
        try:
            yield
        except BaseException:
            if not stage.proof.is_file():
                note.unlink(missing_ok=True)
            raise
        if stale:
            write_atomic(note, text)
