"""Checkpoints whose weights are quantised: named as what they are, and made plain where transformers can do so itself.

A zero has no place of its own in most of these formats, and what a method writes would be rounded again; so ressa works
on plain weights. Of 8-bit and 4-bit floats in blocks transformers makes bfloat16 without further packages or a GPU;
that is four and more times as large, so it is said. Folders that `ressa export` packed are loaded as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ressa.errors import RessaError, RessaWarning
from ressa.packed.loading import METHOD, PackedConfig

MADE_PLAIN = {"fp8": "8-bit floats in blocks", "mxfp4": "4-bit floats in blocks (MXFP4)"}
KEYS = ("quantization_config", "compression_config")  # compressed-tensors had the second name once
LEGACY = ("sparse-bitmask", "sparse-24-bitmask")  # of compressed-tensors up to 0.14; no library reads them any more
DETAILS = ("format", "bits", "load_in_4bit", "load_in_8bit", "quant_type", "quant_algo", "weights")


def plain_dtype(name: Any, config: Any, dtype: torch.dtype | str) -> torch.dtype | str:
    """The dtype to load the weights in: `dtype`, or of a quantised model that can be made plain bfloat16.

    With a RessaWarning where weights are made plain. `config` is told to have them made so on every device.

    Raises:
        RessaError: quantised weights that would stay so, with what they are; a packed folder of a newer version.
    """
    for where, quantisation in _quantisations(config):
        if not where and is_packed(config):
            PackedConfig(**quantisation)  # checks it
            continue
        if found := legacy(config):
            raise RessaError(
                f"{name}: holds its zeros in the format {found}, which is read no more: transformers would leave "
                f"random weights; write it as a dense folder: ressa export {name} OUT --format dense"
            )
        method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
        if where or method not in MADE_PLAIN or not isinstance(quantisation, dict):
            raise RessaError(
                f"{name}: its weights are quantised ({_described(quantisation)}{where}); ressa works on plain weights: "
                "name the model that it was made from, or one that its tool has dequantised"
            )
        quantisation["dequantize"] = True
        dtype = torch.bfloat16 if dtype == "auto" else dtype
        warnings.warn(
            f"{name}: its weights are {MADE_PLAIN[method]}; they are made {str(dtype).removeprefix('torch.')}, "
            "and written so",
            RessaWarning,
            stacklevel=4,
        )
    return dtype


def is_packed(config: Any) -> bool:
    """Whether the folder of a config is one that `ressa export` packed."""
    quantisation = getattr(config, KEYS[0], None)
    return isinstance(quantisation, Mapping) and quantisation.get("quant_method") == METHOD


def legacy(config: Any) -> str | None:
    """The format, of `LEGACY`, in which a config says that zeros are held; None for others, and if quantised too."""
    for key in KEYS:
        quantisation = getattr(config, key, None)
        if isinstance(quantisation, Mapping) and not quantisation.get("config_groups"):
            sparsity = quantisation.get("sparsity_config")
            if isinstance(sparsity, Mapping) and sparsity.get("format") in LEGACY:
                return sparsity["format"]
    return None


def forget_quantised(model: Any, dtype: torch.dtype) -> None:
    """Lets a model whose weights were made plain be saved so: transformers would undo what it did in loading."""
    model.to(dtype)  # also what was stored plain, and wider
    model._weight_conversions = None  # then those of the architecture alone are taken


def _quantisations(config: Any) -> Iterator[tuple[str, Any]]:
    """What a config and the configs in it say of quantisation, each with where."""
    tree = config.to_dict() if not isinstance(getattr(config, KEYS[0], None), str) else vars(config)
    for key in KEYS:
        if (quantisation := getattr(config, key, None)) is not None:
            yield "", quantisation
        for part, inner in tree.items():
            if isinstance(inner, Mapping) and inner.get(key) is not None:
                yield f", in its {part}", inner[key]


def _described(quantisation: Any) -> str:
    """ "gptq, bits 4"."""
    if not isinstance(quantisation, Mapping):
        return f"quantization_config is {str(quantisation)[:80]!r}"
    details = [f"{key} {quantisation[key]}" for key in DETAILS if isinstance(quantisation.get(key), str | int | float)]
    return ", ".join([str(quantisation.get("quant_method", "by a method that it does not name")), *details])
