"""The safetensors of a model, of which single tensors are read: nothing is mapped, nothing stays in memory.

A mapped file counts in a process's memory for as long as it is open and whatever of it was looked at; so tensors are
read (`pread`), and what is not held any more is given back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES as DTYPES
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import convert_and_load_state_dict_in_model, dot_natural_key
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from ressa.errors import RessaError, one_line
from ressa.packed.loading import Names


class Part:
    """A stored tensor as transformers reads it. Whole it is had without a copy, which the library's slices make."""

    def __init__(self, opened: Any, key: str) -> None:
        self._opened, self._key = opened, key
        self._slice = opened.get_slice(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slice, name)

    def __getitem__(self, index: Any) -> Tensor:
        return self._opened.get_tensor(self._key) if index is ... else self._slice[index]


class Absent(torch.Tensor):
    """A tensor that is not read: on the device "meta", and it stays there, whichever device it is asked for."""

    def to(self, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
        plain = self.as_subclass(Tensor)
        return plain if dtype is None else plain.to(dtype)


def files_of(name: Any, source: str) -> list[Path]:
    """The files of weights that transformers reads of a folder or hub name. Raises RessaError if one is not there."""
    try:
        one, index = (
            cached_file(source, file, _raise_exceptions_for_missing_entries=False)
            for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        )
        files = [one] if one else get_checkpoint_shard_files(source, index)[0] if index else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RessaError(f"{name}: its weights cannot be loaded from safetensors: {one_line(error)}") from None
    if not files:
        raise RessaError(f"{name}: its weights cannot be loaded from safetensors: the folder has none")
    if missing := next((file for file in files if not os.path.isfile(file)), None):
        raise RessaError(
            f"{name}: its weights cannot be loaded from safetensors: {Path(missing).name} is not there, and the index "
            "names it"
        )
    return [Path(file) for file in files]


class Stored:
    """The tensors of these files, by the names they have there.

    Raises:
        RessaError: a file that is no safetensors, or is cut short.
    """

    def __init__(self, name: Any, files: Iterable[Path]) -> None:
        self.name, self._where = name, dict[str, Any]()
        for file in files:
            try:
                opened: Any = safe_open(file, framework="pt", backend="pread")
            except (OSError, SafetensorError) as error:
                raise RessaError(
                    f"{name}: its weights cannot be loaded from safetensors: {file.name} is damaged ({error})"
                ) from None
            self._where |= dict.fromkeys(opened.keys(), opened)

    @cached_property
    def keys(self) -> list[str]:
        """In the order in which transformers goes through them."""
        return sorted(self._where, key=dot_natural_key)

    def lazy(self, key: str) -> Part:
        """What transformers reads a tensor from."""
        return Part(self._where[key], key)

    def tensor(self, key: str) -> Tensor:
        """Raises RessaError if it cannot be read."""
        try:
            return self.lazy(key)[...]
        except (OSError, SafetensorError) as error:
            raise RessaError(f"{self.name}: {key} cannot be read: {one_line(error)}") from None

    def absent(self, key: str) -> Tensor:
        """A tensor of its shape and dtype, which holds nothing."""
        told = self.lazy(key)
        return torch.empty(told.get_shape(), dtype=DTYPES[told.get_dtype()], device="meta").as_subclass(Absent)


class Converted:
    """Stored tensors as the parameters of a model: renamed, joined and cut as `from_pretrained` does it."""

    def __init__(self, net: PreTrainedModel, stored: Stored) -> None:
        self.net, self.stored, self._names = net, stored, Names(net, None)
        self._keys: dict[str, list[str]] = {}
        for key in stored.keys:
            self._keys.setdefault(self._names(key), []).append(key)

    def sources(self, wanted: Iterable[str]) -> list[str]:
        """The stored tensors that these parameters are made of; of several made of one the first one's name counts."""
        return [key for name in wanted for key in self._keys.get(name, ())]

    def read(self, keys: Iterable[str]) -> None:
        """Puts what these stored tensors make into the model, in the dtypes of its parameters there.

        Raises:
            RessaError: transformers cannot convert them.
        """
        net: Any = self.net
        before = getattr(net, "_weight_conversions", None)
        how = LoadStateDictConfig(weight_mapping=[*self._names.renamings, *self._names.converters])
        try:
            with _quiet():
                told, _ = convert_and_load_state_dict_in_model(
                    net, {key: self.stored.lazy(key) for key in keys}, how, None
                )
        except (OSError, SafetensorError) as error:
            raise RessaError(f"{self.stored.name}: its weights cannot be read: {one_line(error)}") from None
        finally:
            net._weight_conversions = before
        if told.conversion_errors or told.mismatched_keys:
            wrong = next(iter([*told.conversion_errors, *told.mismatched_keys]))
            raise RessaError(f"{self.stored.name}: {wrong} cannot be made of what is stored")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a bar for every block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def state_of(stored: Stored, absent: Iterable[str]) -> Mapping[str, Any]:
    """What `from_pretrained` takes for the state dict, of which these are not read."""
    left = set(absent)
    return {key: stored.absent(key) if key in left else stored.lazy(key) for key in stored.keys}
