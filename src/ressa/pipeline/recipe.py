"""A recipe as YAML, in and out. No model is loaded."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ressa.errors import RessaError
from ressa.evaluation.settings import Evaluate
from ressa.files.paths import path_of
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair
from ressa.settings import SEEDS, Runtime, build, check, setting


@dataclass(frozen=True)
class Recipe:
    """One experiment: prune, then repair, then ask all three models.

    Leave a section out to leave the stage out; `{}` is a section with nothing but defaults.
    """

    model: str = setting("demo", "The dense model: a folder, a hub name, or demo for the one ressa carries.")
    data: str = setting("emoji", "A folder of records, or emoji for the scenes ressa draws.")
    out: str = setting("runs/ressa", "Where everything goes.")
    seed: int = setting(0, "Of calibration, training and drawing.", least=0, most=SEEDS)
    prune: Prune | None = None
    repair: Repair | None = None
    evaluate: Evaluate | None = None
    runtime: Runtime | None = None

    def __post_init__(self) -> None:
        check(self)
        for name in ("prune", "repair"):
            section = getattr(self, name)
            if section and section.seed not in (0, self.seed):
                raise RessaError(f"{name}: seed {section.seed} is not the recipe's, {self.seed}: say it there, for all")
            if section:
                object.__setattr__(self, name, replace(section, seed=self.seed))

    def on(self, runtime: Runtime) -> Recipe:
        """The recipe, run where `runtime` says; what that leaves open is as the recipe says."""
        given = {name: value for name, value in asdict(runtime).items() if value not in ("auto", None)}
        return replace(self, runtime=replace(self.runtime or Runtime(), **given)) if given else self


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file, checked to the last value.

    Raises:
        RessaError: no such file, no YAML, an unknown key (with the nearest right one), a value of the wrong kind.
    """
    return build(Recipe, read_yaml(path, "the recipe"), str(path))


def read_yaml(path: str | Path, what: str) -> Any:
    """What a YAML file holds, as ressa reads YAML. Raises RessaError for no such file, and no YAML."""
    try:
        return yaml.load(path_of(path, what).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, `!!int x`
        raise RessaError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, without what it leaves out."""
    values = {key: value for key, value in asdict(recipe).items() if value is not None}
    for name in ("prune", "repair"):
        values.get(name, {}).pop("seed", None)  # the recipe's
    return yaml.safe_dump(values, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2:4 as 124, in base sixty, and 010 as 8. Here they are texts; and 1e-3 is a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping; of two equal keys YAML would silently take the last one."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands here twice", key.start_mark)
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
    return loader.construct_mapping(node, deep=True)


def _number(tag: str, pattern: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list("-+0123456789."))


_OURS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}  # no setting is a date
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OURS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_number("int", r"^[-+]?(0|[1-9]\d*)$")
_number("float", r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$")
