"""A study: one recipe with some of its values replaced, by every combination of lists, along lines, by named variants.

Each combination is a cell, an ordinary recipe with a folder of its own: `ressa run` makes it alone, too. A cell's name
ends in a hash of its settings, so that a changed study makes new cells beside the old ones.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ressa.errors import RessaError, shown, unknown
from ressa.files.paths import path_of
from ressa.pipeline.lines import points
from ressa.pipeline.recipe import Recipe, read_yaml
from ressa.pipeline.run import stages
from ressa.pipeline.stage import keys_of
from ressa.settings import Runtime, build, naming

KEYS = ("recipe", "out", "seeds", "grid", "lines", "variants", "measure", "teacher_cache")
MEASURED = (
    *("exact_match", "vqa_accuracy", "kl", "perplexity", "sparsity", "sparsity_vision", "sparsity_connector"),
    *("sparsity_language", "seconds", "evaluation_seconds", "peak_memory_bytes", "bytes"),
)
LONGEST = 100  # letters of a cell's name before its hash

Change = tuple[str, dict[str, Any], dict[str, Any]]  # (part of the name, columns of the table, dotted key: value)


@dataclass(frozen=True)
class Cell:
    """One combination. `columns`: what is its own, for the table: variant, line, seed, and values by dotted key."""

    name: str
    recipe: Recipe
    columns: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.recipe.out)


@dataclass(frozen=True)
class Study:
    """What a study file asks for. `measure`: which measurements its table shows."""

    path: str
    out: Path
    cells: tuple[Cell, ...]
    columns: tuple[str, ...]
    measure: tuple[str, ...]

    @property
    def shared(self) -> Path:
        """Stages that several cells have in common."""
        return self.out / "shared"


def read_study(path: str | Path, runtime: Runtime | None = None) -> Study:
    """The study in a YAML file; every cell's recipe is checked to the last value.

    `runtime`: where all cells are computed and in what, where it says so.

    Raises:
        RessaError: no such file, no YAML, an unknown key (with the nearest right one), a cell that is no recipe.
    """
    study = read_yaml(path, "the study")
    with naming(str(path)):
        _check_keys("key", study, KEYS)
        out = path_of(_text(study, "out"), "out")
        base, axes = _base(study, Path(path)), _axes(study)
        cells = {cell.name: cell for cell in _cells(base, axes, out, study, runtime or Runtime())}
    columns = tuple(dict.fromkeys(name for cell in cells.values() for name in cell.columns))
    measure = tuple(_list(study, "measure", MEASURED))
    return Study(str(path), out, tuple(cells.values()), columns, measure)


def _base(study: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The recipe's values before anything is replaced. What the study says itself is left out of a recipe's file."""
    recipe: Any = study.get("recipe")
    ours = ["out", *(["seed"] if "seeds" in study else [])]
    if isinstance(recipe, str):
        values = read_yaml(path.parent / path_of(recipe, "recipe"), "the recipe")
        return {key: value for key, value in values.items() if key not in ours} if isinstance(values, dict) else values
    if not isinstance(recipe, dict):
        raise RessaError("recipe: needs the values of a recipe, or the path of its file")
    if again := [key for key in ours if key in recipe]:
        raise RessaError(f"recipe: {again[0]}: the study says it, for every cell: leave it out here")
    return dict(recipe)


def _axes(study: Mapping[str, Any]) -> list[list[Change]]:
    """What is combined: seeds, variants, each list of the grid, and the points of all lines."""
    seeds = [_change("seed", seed) for seed in _list(study, "seeds", ())]
    variants = [(_slug(name), {"variant": name}, _flat(v, name)) for name, v in _map(study, "variants").items()]
    grid = [[_change(key, value) for value in _list({key: v}, key, ())] for key, v in _map(study, "grid").items()]
    lines = [change for number, line in enumerate(_list(study, "lines", ()), 1) for change in _line(line, number)]
    return [axis for axis in (seeds, variants, *grid, lines) if axis]


def _change(key: str, value: Any) -> Change:
    return _named(key, value), {key: value}, {key: value}


def _line(line: Any, number: int) -> Iterator[Change]:
    with naming(f"lines: line {number}"):
        parsed = points(line)
    for point in parsed.points:
        name = "_".join([_slug(parsed.name), *(_named(key, value) for key, value in point.items())])
        yield name, {"line": parsed.name, **point}, {**parsed.fixed, **point}


def _flat(changes: Any, name: str) -> dict[str, Any]:
    if not isinstance(changes, dict):
        raise RessaError(f"variants: {name}: must be {{dotted key: value, ...}}; {{}} is the recipe as it is")
    return dict(changes)


def _cells(
    base: Any, axes: Sequence[Sequence[Change]], out: Path, study: Mapping[str, Any], runtime: Runtime
) -> Iterator[Cell]:
    cached = study.get("teacher_cache", False)
    if not isinstance(cached, bool):
        raise RessaError(f"teacher_cache: {shown(cached)} is not true or false")
    for combination in itertools.product(*axes):
        values = deepcopy(base)
        for _, _, changes in combination:
            for key, value in changes.items():
                _replace(values, str(key), value)
        label = "_".join(name for name, _, _ in combination) or "cell"
        with naming(f"cell {label}"):
            recipe = build(Recipe, values, "recipe").on(runtime)
        columns = {key: value for _, own, _ in combination for key, value in own.items()}
        whole = _with_cache(recipe, out) if cached else recipe
        name = f"{label[:LONGEST]}_{_hash(recipe, whole is not recipe)}"
        yield Cell(name, replace(whole, out=str(out / "cells" / name)), columns)


def _replace(values: Any, key: str, value: Any) -> None:
    """Set a value at a dotted key; None takes it away, be it a section or a setting that then has its default."""
    *above, last = key.split(".")
    for name in above:
        if not isinstance(values.get(name), dict):
            values[name] = {}  # an unknown section is refused by its name, when the recipe is built
        values = values[name]
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def _hash(recipe: Recipe, cached: bool) -> str:
    """Of all that decides what comes out; where the study lies does not, nor where it keeps the cache."""
    about = [keys_of(stages(recipe)), *(["cached"] if cached else [])]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]


def _with_cache(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with a folder for what its teacher says, one for all cells that ask the same of the same teacher."""
    asked = recipe.repair
    if asked is None or not asked.complete.needs_teacher or asked.paper or asked.steps == 0:
        return recipe
    if asked.teacher_cache:
        raise RessaError("teacher_cache: the recipe names one already: leave one of them out")
    whole = asked.complete
    about = [recipe.model, recipe.data, recipe.seed, asked.split, asked.samples, asked.top_k, whole.temperature]
    about += [bool(whole.hidden_weight), bool(whole.connector_weight), (recipe.runtime or Runtime()).dtype]
    if asked.labels != "data" or asked.describe:
        about += [asked.labels, asked.label_tokens, asked.describe]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return replace(recipe, repair=replace(asked, teacher_cache=str(out / "shared" / f"teacher-{key}")))


def _check_keys(what: str, mapping: Any, known: Sequence[str]) -> None:
    if not isinstance(mapping, dict):
        raise RessaError(f"must be `key: value` lines, not {type(mapping).__name__}")
    for key in mapping:
        if key not in known:
            raise unknown(what, str(key), known)


def _text(mapping: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := mapping.get(key), str):
        raise RessaError(f"{key}: {'is missing' if value is None else shown(value) + ' is not a text'}")
    return value


def _list(mapping: Mapping[str, Any], key: str, absent: Sequence[Any]) -> Sequence[Any]:
    value = mapping.get(key, absent)
    if not isinstance(value, list | tuple) or (key in mapping and not value):
        raise RessaError(f"{key}: must be a list with something in it, as in [1, 2]")
    return value


def _map(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key, {})
    if not isinstance(value, dict):
        raise RessaError(f"{key}: must be a mapping, {{name: ..., ...}}")
    return value


def _named(key: str, value: Any) -> str:
    """A value with the last word of its key, as a part of a cell's name; of a path the last part."""
    short = Path(value).name if isinstance(value, str) and "/" in value else value
    return f"{key.rpartition('.')[2]}-{_slug(short)}"


def _slug(text: object) -> str:
    """As a part of a folder's name: 2:4 is 2-4."""
    return re.sub(r"[^\w.]+", "-", str(text)).strip("-.") or "x"
