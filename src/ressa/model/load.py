"""A model folder (or hub name) becomes a model and its processor, exactly as plain transformers would load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from ressa.demo import CARRIED
from ressa.errors import RessaError, one_line, unknown
from ressa.files.paths import path_of
from ressa.machine import DTYPES, Machine, machine
from ressa.model.described import check_generation, config_of, described
from ressa.model.pickles import check_pickle
from ressa.model.processor import load_processor
from ressa.model.quantised import forget_quantised, is_packed, plain_dtype
from ressa.model.sound import check_loaded, check_stored


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
    processor = load_processor(name, source, text_only=text_only)
    return weights(name, config, dtype, auto_class(config, name)).to(device).eval(), processor  # type: ignore[arg-type]


def load_to_ask(
    name: str | Path, device: torch.device | str = "auto", dtype: str = "auto", loader: Any = load
) -> tuple[PreTrainedModel, Any, Machine]:
    """(model where and in what it is computed, processor, what was chosen), for verbs that change no weight."""
    model, processor = loader(name)
    chosen = machine_for(model, device, dtype)
    if chosen.autocast:  # fewer bits than are stored: transformers knows which tensors must keep theirs
        model = loader(name, dtype=chosen.compute)[0]
    elif chosen.compute != chosen.stored:
        model = model.to(torch.float32)
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
            if (path / "adapter_config.json").is_file():
                raise RessaError(_adapter(name, path))
            raise RessaError(f"{name}: no config.json in this folder; name a model folder as transformers saves it")
        return str(path)
    on_hub = isinstance(name, str) and name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    if not on_hub or path.exists():
        raise RessaError(f"{name}: no such model folder")
    return str(name)


def read_config(name: str | Path) -> PreTrainedConfig:
    """The config of a model, without its weights. Raises RessaError as `load` does."""
    return config_of(name, resolve(name))


def auto_class(config: PreTrainedConfig, name: str | Path = "the model") -> Any:
    """AutoModelForImageTextToText or, for a text-only model, AutoModelForCausalLM; RessaError if it is neither."""
    for candidate in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if type(config) in candidate._model_mapping:
            if candidate is AutoModelForCausalLM and config.is_encoder_decoder:
                raise RessaError(
                    f"{name}: an encoder-decoder of text alone ({config.model_type}); of text-only models ressa knows "
                    "those that are causal"
                )
            return candidate
    raise RessaError(
        f"{name}: a {config.model_type} model is neither image-text-to-text nor causal; ressa cannot load it"
    )


def _adapter(name: str | Path, path: Path) -> str:
    """What to do with a folder that holds an adapter alone."""
    try:
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    return (
        f"{name}: holds an adapter and no model; put it on its base model{f' ({base})' if base else ''} with peft "
        "(PeftModel.from_pretrained, merge_and_unload, save_pretrained), and name the merged folder"
    )


def weights(name: str | Path, config: PreTrainedConfig, dtype: torch.dtype | str | None, auto: Any) -> PreTrainedModel:
    """The model as `auto`, an auto class or a class of models, loads it. Raises RessaError as `load` does."""
    source = resolve(name)
    check_generation(name, source)
    chosen = plain_dtype(name, config, _dtype(dtype))
    quantised = hasattr(config, "quantization_config")
    skeleton = described(name, config, auto)
    check_stored(name, source, sum(parameter.numel() for parameter in skeleton.parameters()), quantised)
    try:
        model, info = auto.from_pretrained(
            source,
            config=config,
            dtype=chosen,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name below
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise RessaError(f"{name}: its weights cannot be loaded from safetensors: {one_line(error)}") from None
    if quantised and not is_packed(config) and isinstance(chosen, torch.dtype):
        forget_quantised(model, chosen)
    check_loaded(name, model, info)
    return model


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        return DTYPES[dtype]
    return dtype or "auto"
