"""transformers is told how to load packed folders: importing this registers it, after which `from_pretrained` knows.

In a process that has not imported it, `from_pretrained` ends in an error: `X.weight` is stored, and is no matrix.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ressa.errors import RessaError, RessaWarning
from ressa.packed import native
from ressa.packed.format import BITMASK, METHOD, SCALE, SHAPE, VALUES, check, check_config
from ressa.packed.linear import PackedLinear

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """`quantization_config` of a packed folder. Raises RessaError as `check_config`."""

    def __init__(self, **config: Any) -> None:
        self.group_size = check_config(config)
        self.quant_method: Any = METHOD
        self.version = config["version"]


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts a PackedLinear in the place of every linear that the files hold packed, and checks what was read."""

    quantization_config: PackedConfig

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False  # `ressa export` writes packed folders

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Iterable[str] = (), **_: Any
    ) -> None:
        self.files = [str(file) for file in checkpoint_files]
        stored = _stored(self.files)
        names = Names(model, self)
        shapes = set()
        for stem, tensors in stored.items():
            _replace(model, names(f"{stem}.{SHAPE}").removesuffix(f".{SHAPE}"), tensors, self.quantization_config)
        names = Names(model, self)  # those of the packed tensors
        for stem, tensors in stored.items():
            for part in tensors.keys() - {SHAPE}:
                if (key := names(f"{stem}.{part}")) not in names.known:
                    raise RessaError(f"{stem}.{part}: belongs to nothing in this model ({key})")
            shapes.add(re.escape(names(f"{stem}.{SHAPE}")))
        seen = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = seen | {rf"^(?:{'|'.join(sorted(shapes))})$"}

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        layers = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
        mapped = _mapped(self.files)
        without = {module.kind for name, module in layers.items() if not _prepared(module, name, mapped)}
        if without and native.wanted():
            _say_once(f"values of {', '.join(sorted(without))} have no kernels here ({native.why_none()})")


def _prepared(module: PackedLinear, name: str, mapped: list[range]) -> bool:
    """Checks what was read of one linear and repacks it; whether there are kernels.

    transformers leaves tensors in the mapped file, all of which would be in memory beside what was made of them.
    """
    stored = module.packed
    check(stored, name)
    if ready := module.prepare():
        for tensor in (stored.values, stored.bitmask, stored.scale):
            if tensor is not None and any(tensor.data_ptr() in part for part in mapped):
                native.forget(tensor)
    return ready


def _mapped(files: Iterable[str]) -> list[range]:
    """Addresses at which these files are mapped; none where the system does not tell."""
    names, maps = {os.path.realpath(file) for file in files}, Path("/proc/self/maps")
    lines = maps.read_text(errors="replace").splitlines() if maps.exists() else []
    parts = [line.split(maxsplit=5) for line in lines]
    ends = [part[0].split("-") for part in parts if len(part) == 6 and part[5] in names]
    return [range(int(first, 16), int(last, 16)) for first, last in ends]


@cache
def _say_once(why: str) -> None:
    warnings.warn(f"packed layers are unpacked at every call: {why}", RessaWarning, stacklevel=2)


class Names:
    """Name of a stored tensor -> its name in the loaded model, as transformers' own loading has it."""

    def __init__(self, model: PreTrainedModel, quantizer: HfQuantizer | None) -> None:
        transforms = get_model_conversion_mapping(model, None, quantizer)
        self.renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self.converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self.prefix, self.known = model.base_model_prefix, model.state_dict()

    def __call__(self, key: str) -> str:
        renamed = rename_source_key(key, self.renamings, self.converters, self.prefix, self.known)[0]
        if renamed not in self.known and key in self.known:
            renamed = rename_source_key(key, [], [], self.prefix, self.known)[0]
        return renamed


def _stored(files: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """{stem: {part of the format: an empty tensor like the stored one, of SHAPE the tensor itself}}."""
    found: dict[str, dict[str, Tensor]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (no dict)
                stem, _, part = key.rpartition(".")
                if part in (VALUES, BITMASK, SCALE):
                    view = tensors.get_slice(key)
                    if view.get_dtype() not in DTYPES:
                        raise RessaError(f"{key}: is stored in {view.get_dtype()}, which no packed tensor is")
                    empty = torch.empty(view.get_shape(), dtype=DTYPES[view.get_dtype()], device="meta")
                    found.setdefault(stem, {})[part] = empty
    for file in files if found else ():
        with safe_open(file, framework="pt") as tensors, torch.device("cpu"):
            for key in tensors.keys():  # noqa: SIM118
                stem, _, part = key.rpartition(".")
                if part == SHAPE and stem in found and tensors.get_slice(key).get_shape() == [2]:
                    found[stem][SHAPE] = tensors.get_tensor(key)
    return found


def _replace(model: nn.Module, name: str, stored: dict[str, Tensor], config: PackedConfig) -> None:
    """Puts a PackedLinear where the linear `name` stands. Raises RessaError if none does, or one of another shape."""
    parent, _, last = name.rpartition(".")
    try:
        old = model.get_submodule(name)
    except AttributeError:
        old = None
    if type(old) not in (nn.Linear, Conv1D):
        raise RessaError(f"{name}: is stored packed, and is no linear of this model")
    assert old is not None
    weight = old.get_parameter("weight")
    shape = tuple(weight.T.shape if isinstance(old, Conv1D) else weight.shape)
    recorded = stored.get(SHAPE)
    if recorded is None or recorded.dtype != torch.int64 or tuple(recorded.tolist()) != shape:
        what = "does not say which shape it has" if recorded is None else f"is {recorded.tolist()} in the file"
        raise RessaError(f"{name}: is stored packed and {what}; by its config it is {list(shape)}")
    if VALUES not in stored:
        raise RessaError(f"{name}: is stored packed without its values")
    packed = PackedLinear(
        (shape[0], shape[1]),
        stored,
        group=config.group_size,
        bias=old._parameters["bias"],
        like=torch.empty(0, dtype=weight.dtype, device=weight.device),
    )
    setattr(model.get_submodule(parent), last, packed)
