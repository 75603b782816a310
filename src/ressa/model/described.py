"""What config.json describes, as a model without weights; or one line that says what in it describes none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ressa.errors import RessaError, one_line

COUNTS = ("num_", "n_", "hidden_size", "intermediate_size", "vocab_size", "patch_size", "image_size", "head_dim")
IDS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")


def config_of(name: Any, source: str) -> PreTrainedConfig:
    """The config of a folder or hub name. Raises RessaError for one that is none, or is read by code alone."""
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # configs check themselves, and divide, with whatever that raises
        if not Path(source).exists():
            raise RessaError(
                f"{name}: no such folder or hub model, or a config that cannot be read: {one_line(error)}"
            ) from None
        if "custom code" in str(error):
            raise RessaError(
                f"{name}: only the code in its folder knows this model (auto_map), and ressa runs no code of a folder"
            ) from None
        raise RessaError(f"{name}: its config cannot be read: {_why(error, _raw(source))}") from None


def described(name: Any, config: PreTrainedConfig, auto: Any) -> PreTrainedModel:
    """The model that `config` describes, on the device "meta". Raises RessaError if it describes none."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loading says the same again
            if isinstance(auto, type) and issubclass(auto, PreTrainedModel):
                return auto._from_config(config)
            return auto.from_config(config, trust_remote_code=False)
    except ImportError as error:
        raise RessaError(f"{name}: transformers cannot make this model here: {one_line(error)}") from None
    except Exception as error:  # whatever the layers of an impossible size raise
        raise RessaError(f"{name}: its config describes no model: {_why(error, config.to_dict())}") from None


def check_generation(name: Any, source: str) -> None:
    """Raises RessaError for a generation_config.json that transformers cannot read: it would blame the weights."""
    file = Path(source) / "generation_config.json"
    if not file.is_file():
        return
    try:
        generation = GenerationConfig.from_pretrained(source)
        for key in IDS:
            _check_id(key, getattr(generation, key, None))
    except Exception as error:  # it holds whatever somebody wrote, and each field is used in its own way
        raise RessaError(
            f"{name}: generation_config.json cannot be used, mend or delete it: {one_line(error)}"
        ) from None


def _check_id(key: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    if not all(one is None or (isinstance(one, int) and not isinstance(one, bool)) for one in values):
        raise TypeError(f"{key} is {value!r}, not the number of a token")


def _raw(source: str) -> Any:
    file = Path(source) / "config.json" if Path(source).is_dir() else Path(source)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _why(error: Exception, tree: Any) -> str:
    """The error, and the sizes and counts in `tree` that no model can have."""
    impossible = [f"{key} is {value}" for key, value in _counts(tree, "")][:3]
    return "; ".join([*impossible, f"{type(error).__name__}: {one_line(error)}"])


def _counts(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{path}{key}.")
        elif str(key).startswith(COUNTS) and isinstance(value, int) and not isinstance(value, bool) and value <= 0:
            yield f"{path}{key}", value
