"""A model folder (or hub name) becomes a model and its processor, exactly as plain transformers would load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from ressa.demo import CARRIED
from ressa.errors import RessaError, unknown
from ressa.machine import DTYPES, Machine, machine
from ressa.model.pickles import check_pickle
from ressa.paths import path_of


def load(
    name: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, Any]:
    """(model in eval mode, processor) of a folder, a hub name, or `demo` or `emoji-instructblip`, which ressa carries.

    A vision-language model comes with its processor, a text-only causal one with its tokenizer. The weights keep the
    dtype they are stored in unless `dtype` says otherwise. Only safetensors are read and no code of the folder is run.

    Raises:
        RessaError: no such folder, no config.json, no weights, a kind of model that ressa does not know.
    """
    source = resolve(name)
    check_pickle(source)
    config = read_config(name)
    text_only = auto_class(config, name) is AutoModelForCausalLM
    processor_class: Any = AutoTokenizer if text_only else AutoProcessor
    try:
        processor = processor_class.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise RessaError(
            f"{name}: its {processor_class.__name__[4:].lower()} cannot be loaded: {first(error)}"
        ) from None
    return _weights(name, config, _dtype(dtype)).to(device).eval(), processor  # type: ignore[arg-type]


def load_to_ask(
    name: str | Path, device: torch.device | str = "auto", dtype: str = "auto", loader: Any = load
) -> tuple[PreTrainedModel, Any, Machine]:
    """(model where and in what it is computed, processor, what was chosen), for verbs that change no weight."""
    model, processor = loader(name)
    chosen = machine_for(model, device, dtype)
    if chosen.autocast:  # fewer bits than are stored: transformers knows which tensors must keep theirs
        model = loader(name, dtype=chosen.compute)[0]
    elif chosen.compute != chosen.stored:
        model = model.float()
    return model.to(chosen.device), processor, chosen


def machine_for(model: PreTrainedModel, device: torch.device | str, dtype: str) -> Machine:
    """Where and in what a model that came as its folder keeps it is to be computed."""
    return machine(device, dtype, getattr(model.config, "dtype", None) or model.dtype)


def resolve(name: str | Path) -> str:
    """The folder or hub name that `name` stands for. Raises RessaError for a path that is no model folder."""
    path = path_of(name, "the model")
    if str(name) in CARRIED and (str(name) == "demo" or not path.is_dir()):
        return str(CARRIED[str(name)])
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RessaError(f"{name}: no config.json in this folder; name a model folder as transformers saves it")
        return str(path)
    on_hub = isinstance(name, str) and name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    if not on_hub or path.exists():
        raise RessaError(f"{name}: no such model folder")
    return str(name)


def read_config(name: str | Path) -> PreTrainedConfig:
    """The config of a model, without its weights. Raises RessaError as `load` does."""
    source = resolve(name)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise RessaError(
            f"{name}: no such folder or hub model, or a config that cannot be read: {first(error)}"
        ) from None


def auto_class(config: PreTrainedConfig, name: str | Path = "the model") -> Any:
    """AutoModelForImageTextToText or, for a text-only model, AutoModelForCausalLM; RessaError if it is neither."""
    for candidate in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if type(config) in candidate._model_mapping:
            return candidate
    raise RessaError(
        f"{name}: a {config.model_type} model is neither image-text-to-text nor causal; ressa cannot load it"
    )


def first(error: BaseException) -> str:
    """The first line of an error's text: errors for users are one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _weights(name: str | Path, config: PreTrainedConfig, dtype: torch.dtype | str) -> PreTrainedModel:
    try:
        model, info = auto_class(config, name).from_pretrained(
            resolve(name),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RessaError(f"{name}: its weights cannot be loaded from safetensors: {first(error)}") from None
    if missing := sorted(info["missing_keys"]):
        # transformers would go on with random values in their place
        raise RessaError(f"{name}: {len(missing)} weights are missing from the folder, the first is {missing[0]}")
    return model


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        return DTYPES[dtype]
    return dtype or "auto"
