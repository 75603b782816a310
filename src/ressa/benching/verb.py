"""bench: what models take in bytes and in seconds on this machine, beside the dense one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from transformers import AutoModelForImageTextToText

from ressa.benching.prompt import prompt
from ressa.benching.settings import Bench
from ressa.errors import RessaError, RessaWarning, one_line
from ressa.files.folders import check_writable
from ressa.files.paths import expanded
from ressa.files.text import write_atomic
from ressa.machine import check_machine, versions
from ressa.model.folder import refuse_adapter
from ressa.model.load import auto_class, read_config, resolve
from ressa.model.pickles import check_pickle
from ressa.reporting.stored import size_of
from ressa.settings import Progress, Runtime, check_paths

FILE = "bench.json"
KILLED = -9


def bench(
    models: str | Path | Sequence[str | Path],
    *,
    settings: Bench,
    runtime: Runtime,
    against: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure model folders, each in processes of its own, in turns; all in the dtype that is the fastest here.

    Args:
        models: folders of models that read pictures, or `demo`.
        against: the dense model that the others are compared with.
        data: a data folder or file whose first picture and question are the prompt; else they are made here.
        out: a folder for bench.json.
        progress: called with (processes done, in all, the next model).

    Returns:
        {"models": {name: what `measure` returns, each number as {"median", "min", "max"}, and "disk_bytes", "bound":
         dense_bytes / read_bytes}, "against": name or None, "machine", "versions", "settings", "seconds"}

    Raises:
        RessaError: before anything is loaded: no local folder, a model without pictures, data without a picture; and
            what a measuring process ended with.
    """
    started = time.perf_counter()
    folders = [models] if isinstance(models, str | Path) else list(models)
    named = names([*([] if against is None else [against]), *folders])
    check_machine(runtime.device, runtime.dtype)
    for model in named.values():
        _check(model)
    folder = None if out is None else check_writable(out, *named.values())
    place = None if data is None else expanded(data, "the data")
    prompt(place, settings.split)
    runs = _runs(named, place, settings, runtime, progress)
    told: dict[str, Any] = {"command": "bench", "models": {n: _told(named[n], runs[n]) for n in named}}
    told |= {
        "against": None if against is None else next(iter(named)),
        "machine": next(iter(runs.values()))[0]["machine"],
    }
    told |= {"settings": asdict(settings) | {"data": place}, "versions": versions()}
    told["seconds"] = round(time.perf_counter() - started, 2)
    if folder:
        write_atomic(folder / FILE, json.dumps(told, indent=2) + "\n")
    return told


def names(models: Sequence[str | Path]) -> dict[str, str | Path]:
    """{name in tables: model}: the last part of its path, or all of it where two end alike."""
    for model in models:
        check_paths("bench", model=model)
    if not models:
        raise RessaError("bench: no model; name a folder")
    last = [Path(model).name or str(model) for model in models]
    found = {name if last.count(name) == 1 else str(model): model for name, model in zip(last, models, strict=True)}
    if len(found) < len(models):
        raise RessaError("bench: a model is named twice; name each once, and the dense one by --against alone")
    return found


def _check(model: str | Path) -> None:
    """Raises RessaError for what could not be measured, before anything is."""
    folder = resolve(model)
    if not Path(folder).is_dir():
        raise RessaError(f"{model}: is no folder on this machine; download it first, or name another")
    refuse_adapter(model)
    check_pickle(folder)
    if auto_class(read_config(model), model) is not AutoModelForImageTextToText:
        raise RessaError(f"{model}: reads text only; bench asks about a picture: name a vision-language model")


def _runs(
    named: Mapping[str, str | Path], data: str | None, settings: Bench, runtime: Runtime, progress: Progress | None
) -> dict[str, list[dict[str, Any]]]:
    """{name: what each of its processes told}, in turns, so that whatever else the machine does meets all of them."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in named}
    turns = [name for _ in range(settings.repetitions) for name in named]
    said = set()
    for done, name in enumerate(turns):
        if progress:
            progress(done, len(turns), name)
        job = {"model": str(named[name]), "data": data, "settings": asdict(settings), "runtime": asdict(runtime)}
        told = _process(name, job)
        said |= {f"{name}: {text.removeprefix(f'{named[name]}: ')}" for text in told.pop("warnings")}
        runs[name].append(told)
    for text in sorted(said):
        warnings.warn(text, RessaWarning, stacklevel=4)
    return runs


def _process(name: str, job: dict[str, Any]) -> dict[str, Any]:
    words = [sys.executable, "-m", "ressa.benching.measure", json.dumps(job)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        why = "it was killed: is there memory enough?" if done.returncode == KILLED else one_line(RuntimeError(last))
        raise RessaError(f"{name}: the process that measured it ended with code {done.returncode}: {why}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in told:
        raise RessaError(f"{name}: {told['error'].removeprefix(f'{name}: ')}")
    return told


def _told(model: str | Path, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The repetitions together; bytes that cannot differ stand once."""
    first, size = runs[0], size_of(Path(resolve(model)))
    same = ("parameter_bytes", "read_bytes", "dense_bytes", "prompt_tokens")
    told: dict[str, Any] = {"model": str(model), "disk_bytes": size} | {key: first[key] for key in same}
    told["bound"] = first["dense_bytes"] / first["read_bytes"]
    for key in ("peak_bytes", "load_seconds", "prefill_seconds"):
        told[key] = _spread([run[key] for run in runs])
    rates = {batch: [run["tokens_per_second"][batch] for run in runs] for batch in first["tokens_per_second"]}
    return told | {"tokens_per_second": {batch: _spread(found) for batch, found in rates.items()}}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}
