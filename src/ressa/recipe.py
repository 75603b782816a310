"""What a recipe may say. Every setting of every verb is declared, explained and checked here, once.

The command line builds its options from these classes; `ressa run` reads the same from YAML. Nothing here loads a model.
"""

from __future__ import annotations

import re
import types
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ressa.errors import RessaError, unknown


def setting(default: Any, help: str) -> Any:
    """A field with its default and the words that `--help` and the docs print."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Prune:
    """Where the zeros go."""

    method: str = setting("wanda", "How zeros are chosen: magnitude, wanda or sparsegpt.")
    sparsity: str = setting(
        "2:4", "Of vision and language: 2:4 keeps 2 of every 4 neighbouring inputs; 50% zeroes half."
    )
    vision: str | None = setting(None, "The same for the vision tower alone; 0 leaves it dense.")
    connector: str | None = setting(None, "The same for the connector (projector, Q-Former); dense unless asked.")
    language: str | None = setting(None, "The same for the language model alone; 0 leaves it dense.")
    split: str = setting("train", "Which records calibrate.")
    samples: int = setting(128, "How many records calibrate.")
    batch_size: int = setting(8, "Records that run together in calibration.")
    propagate: str = setting("sequential", "Inputs of a block come from pruned blocks (sequential) or not (dense).")
    group: str | None = setting(None, "What competes in a share: row or matrix. Default: matrix in vision, else row.")
    damp: float | None = setting(None, "SparseGPT: added to the Gram's diagonal, as a share of its mean. [0.01]")


@dataclass(frozen=True)
class Repair:
    """SparseLoRA and cross-modality adaptation: how the weights that stay are trained."""

    split: str = setting("train", "Which records train.")
    samples: int | None = setting(None, "How many of them. [all]")
    steps: int | None = setting(None, "Optimiser steps. [one pass over the samples]")
    batch_size: int = setting(16, "Records a step.")
    lr: float = setting(1e-3, "Peak learning rate; cosine to 0 after the warm-up.")
    warmup: float = setting(0.03, "Share of the steps until the peak learning rate.")
    rank: int = setting(16, "Rank of SparseLoRA.")
    alpha: float = setting(32.0, "The update is scaled by alpha / rank.")
    kl_weight: float = setting(0.5, "a in (1 - a) * cross-entropy + a * KL(dense || sparse).")
    temperature: float = setting(2.0, "Of the KL, which is scaled by its square.")
    paper: bool = setting(False, "The KL as RESSA released it: summed over positions, divided by the batch.")
    train_norms: bool = setting(True, "Train the norms too.")
    train_biases: bool = setting(True, "Train the biases of pruned linears too.")
    train_connector: bool = setting(True, "Train the connector too (where it is not pruned).")
    bf16: bool = setting(False, "Compute in bfloat16 (autocast).")


@dataclass(frozen=True)
class Evaluate:
    """What is asked of a model."""

    split: str = setting("test", "Which records are asked.")
    limit: int | None = setting(None, "Ask only this many, drawn at random, the same each time. [all]")
    batch_size: int = setting(32, "Questions answered together.")
    max_new_tokens: int = setting(32, "Where an answer is cut off.")


@dataclass(frozen=True)
class Recipe:
    """One experiment: prune, then repair, then ask all three models. Leave a section out to leave the stage out."""

    model: str = setting("demo", "The dense model: a folder, a hub name, or demo for the one ressa carries.")
    data: str = setting("emoji", "A folder of records, or emoji for the scenes ressa draws.")
    out: str = setting("runs/ressa", "Where everything goes.")
    seed: int = setting(0, "Of calibration, training and drawing.")
    prune: Prune | None = None
    repair: Repair | None = None
    evaluate: Evaluate | None = None


SECTIONS = {"prune": Prune, "repair": Repair, "evaluate": Evaluate}


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file, checked to the last value.

    Raises:
        RessaError: no such file, no YAML, an unknown key (with the nearest right one), a value of the wrong kind.
    """
    try:
        told = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RessaError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    return build(Recipe, told, str(path))


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, without what it leaves out."""
    told = {key: value for key, value in asdict(recipe).items() if value is not None}
    return yaml.safe_dump(told, sort_keys=False)


def build(cls: type[Any], told: Any, where: str) -> Any:
    """An object of one of the classes above from a mapping; RessaError naming `where` for what does not fit."""
    if not isinstance(told, dict):
        raise RessaError(f"{where}: must be `key: value` lines, not {type(told).__name__}")
    kinds = get_type_hints(cls)
    for key in told:
        if key not in kinds:
            raise RessaError(f"{where}: {unknown('key', str(key), kinds)}")
    values = {key: _value(kinds[key], value, f"{where}: {key}") for key, value in told.items()}
    made = cls(**values)
    _check(made, where)
    return made


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, where that loses nothing."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value is None:
        if type(None) in options:
            return None
        raise RessaError(f"{where}: has no value")
    for option in options:
        if option in SECTIONS.values():
            return build(option, value, where)
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if option is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)  # sparsity: 0.5
        if option is not type(None) and type(value) is option:
            return value
    names = " or ".join("nothing" if o is type(None) else o.__name__ for o in options)
    raise RessaError(f"{where}: {value!r} is not {names}")


def _check(made: Any, where: str) -> None:
    """What a type cannot say: patterns, names and numbers out of range."""
    for f in fields(made):
        value = getattr(made, f.name)
        if type(value) is int and f.name != "seed" and value < 1:
            raise RessaError(f"{where}: {f.name}: {value} must be at least 1")
    if isinstance(made, Prune):
        from ressa import methods  # both load torch: only when there is something to check
        from ressa.patterns import parse

        methods.get(made.method, damp=made.damp)
        for name in ("sparsity", "vision", "connector", "language"):
            if (text := getattr(made, name)) is not None:
                parse(text)
        if made.propagate not in ("sequential", "dense"):
            raise unknown("propagate", made.propagate, ("sequential", "dense"))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2:4 as 124, in base sixty. Here it is a pattern; and 1e-3 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _number(tag: str, pattern: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list("-+0123456789."))


_number("int", r"^[-+]?\d+$")
_number("float", r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$")
