"""Model folders on disk: written whole or not at all, their zeros counted, their patterns verified."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ressa.errors import RessaError, RessaWarning
from ressa.files.folders import appear, check_output, partial, writing
from ressa.files.folders import check_writable as check_writable  # verbs know it from here
from ressa.files.text import read_json
from ressa.model.described import described
from ressa.model.load import auto_class, read_config, resolve
from ressa.model.matrix import matrix
from ressa.model.quantised import is_packed
from ressa.model.sound import check_finite
from ressa.model.stored import Converted, Stored
from ressa.model.streamed import matrices
from ressa.model.structure import structure
from ressa.patterns import Pattern, parse

PRUNED_FROM = 0.05  # where no ressa.json says, a linear with at least this share of zeros counts as pruned
MANIFEST = "ressa.json"
CONFIGS = "configs"  # made in a folder beside the weights first


@dataclass(frozen=True)
class Zeros:
    """How many of a matrix's weights are zero."""

    zeros: int
    weights: int

    @classmethod
    def of(cls, weight: Tensor) -> Zeros:
        """Those of a tensor, without one of whole numbers beside it, which a sum would make."""
        return cls(weight.numel() - int(weight.count_nonzero()), weight.numel())

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0


def write_folder(
    out: str | Path,
    model: PreTrainedModel,
    processor: Any,
    manifest: Mapping[str, Any],
    *,
    patterns: Mapping[str, Pattern] | None = None,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Writes model, processor, model card and `manifest` (as ressa.json, last) to `out`, which appears complete or not
    at all.

    `patterns` are verified on the written files before `out` appears; `also` may write more into it.
    Weights are safetensors; config.json is the model's own and never tells of sparsity, because serving engines
    refuse models that do.

    Raises:
        RessaError: as `check_output` and `verify`, and for a parameter that holds NaN or infinity.
    """
    path = check_output(out).absolute()
    check_finite(out, model)
    with partial(path) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        _plain_config(folder / "config.json")
        if patterns:
            verify(folder, patterns)
        if also:
            also(folder)
        if "arguments" in manifest:
            _write_card(folder, manifest, path.name)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        appear(folder, path, MANIFEST)


def complete_folder(
    work: Path,
    out: Path,
    model: PreTrainedModel,
    processor: Any,
    patterns: Mapping[str, Pattern],
    manifest: Callable[[Mapping[str, Zeros]], dict[str, Any]],
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """As `write_folder`, where the weights already lie in `work`, a folder beside `out`, which becomes it.

    Args:
        manifest: makes ressa.json of the zeros that were counted on the disk, by linear.
        without: files in `work` that `out` is not to have.

    Raises:
        RessaError: as `verify`.
    """
    with writing(out, work):
        beside = work / CONFIGS  # transformers takes shards that it did not write for left over
        model.save_pretrained(beside, state_dict={})
        for file in beside.iterdir():
            file.replace(work / file.name)
        beside.rmdir()
        processor.save_pretrained(work)
        _plain_config(work / "config.json")
        told = manifest(verify(work, patterns))
        _write_card(work, told, out.name)
        (work / MANIFEST).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        appear(work, out.absolute(), MANIFEST, without)
    return told


def refuse_packed(*names: str | Path) -> None:
    """Raises RessaError for a folder that is packed: its weights can be read and not changed."""
    for name in names:
        if is_packed(read_config(name)):
            raise RessaError(f"{name}: is packed and stays as it is; unpack it: ressa export {name} OUT --format dense")


def _write_card(folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    """The model card. One that cannot be made, for what an earlier ressa.json says, costs no weights: it warns."""
    from ressa.reporting.card import card_text

    try:
        (folder / "README.md").write_text(card_text(manifest, folder, name), encoding="utf-8")
    except RessaError as error:
        warnings.warn(f"{name}: no model card is written ({error})", RessaWarning, stacklevel=2)


def refuse_adapter(name: str | Path) -> None:
    """Raises RessaError if the folder holds an adapter beside its weights, which transformers would put on top."""
    if (Path(resolve(name)) / "adapter_config.json").is_file():
        raise RessaError(f"{name}: has an adapter that is not merged; name the folder that it was trained from")


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """What ressa.json says; None if the folder has none. Raises RessaError if it is not JSON."""
    manifest = read_json(Path(folder) / MANIFEST)
    if not isinstance(manifest, dict | None):
        raise RessaError(f"{Path(folder) / MANIFEST}: is not an object in braces; was it written by ressa?")
    return manifest


def patterns_of(manifest: Mapping[str, Any]) -> dict[str, Pattern]:
    """The pattern of each pruned matrix, by the name of its linear, as a manifest of `prune` tells it."""
    matrices = manifest.get("matrices", {})
    return {name: parse(entry["pattern"], entry.get("group", "row")) for name, entry in matrices.items()}


def zeros(folder: str | Path) -> dict[str, Zeros]:
    """The zeros of every matrix in the folder's safetensors, by the name of its module in the loaded model.

    Tensors of one dimension (biases, norms) are left out; tied matrices come once.
    """
    return {name: Zeros.of(weight) for name, weight in _matrices(Path(folder))}


def verify(folder: str | Path, patterns: Mapping[str, Pattern]) -> dict[str, Zeros]:
    """The zeros of each of these matrices. Raises RessaError naming the first on disk that breaks its pattern, or is
    not there."""
    left, found = dict(patterns), dict[str, Zeros]()
    for name, weight in chain(_matrices(Path(folder), patterns.keys()), _joined(folder, left)):
        pattern = left.pop(name)
        if not pattern.holds(weight):
            raise RessaError(f"{folder}: {name} is not {pattern} on disk")
        found[name] = Zeros.of(weight)
    if left:
        raise RessaError(f"{folder}: no weights of {next(iter(left))} on disk, so its pattern cannot be verified")
    return found


def _matrices(folder: Path, wanted: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """(module name, weight (O, I)) of all tensors with more than one dimension (or of the `wanted`), one by one."""
    stored, model = _stored(folder), empty_model(folder)
    modules = dict(model.named_modules())
    for key, name in module_names(model, stored.keys).items():
        if len(stored.lazy(key).get_shape()) > 1 and (wanted is None or name in wanted):
            weight = stored.tensor(key)
            yield name, matrix(modules[name], weight) if name in modules else weight


def _joined(folder: str | Path, wanted: Mapping[str, Pattern]) -> Iterator[tuple[str, Tensor]]:
    """Those of the `wanted` matrices that the files hold in another cut (experts apart, query, key and value joined).

    Only transformers knows how they are put together, so it is asked to, block by block.
    """
    if not wanted:
        return
    model = empty_model(Path(folder))
    converted = Converted(model, _stored(Path(folder)))
    for block in structure(model).blocks():
        if not (names := [name for name in block.linears if name in wanted]):
            continue
        places = matrices(block)
        empty = [place.parameter for place in places]
        converted.read(converted.sources(place.name for place in places))
        yield from ((name, weight) for name in names if not (weight := block.linears[name].weight).is_meta)
        for place, nothing in zip(places, empty, strict=True):
            place.put(nothing)


def _stored(folder: Path) -> Stored:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RessaError(f"{folder}: no safetensors in this folder")
    return Stored(folder, files)


def prunable_weights(name: str | Path) -> dict[str, int]:
    """How many weights each part of a model has in its blocks' linears, which pruning counts. None are loaded."""
    config = read_config(name)
    parts = structure(described(name, config, auto_class(config, name))).parts
    linears = {part.name: [m for block in part.blocks for m in block.linears.values()] for part in parts.values()}
    return {part: sum(linear.weight.numel() for linear in own) for part, own in linears.items()}


def empty_model(folder: str | Path) -> PreTrainedModel:
    """The model without weights."""
    config = read_config(folder)
    return described(folder, config, auto_class(config, folder))


def module_names(model: PreTrainedModel, keys: list[str]) -> dict[str, str]:
    """Stored name of a tensor -> name of its module. Many families keep older names on disk than in memory.

    The renaming is transformers' own, as in `from_pretrained`; tensors that it would fuse keep their stored names.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    known = model.state_dict()
    names = {}
    for key in sorted(keys, key=dot_natural_key):
        name, fused = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        names[key] = (key if fused or name not in known else name).removesuffix(".weight")
    return names


def _plain_config(file: Path) -> None:
    """Takes `sparsity_config` out of a config that came with one."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.pop("sparsity_config", None) is not None:
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
