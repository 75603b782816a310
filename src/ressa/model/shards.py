"""The safetensors of an output, laid out before the first weight is there and filled block by block.

The files are those that `save_pretrained` would write, byte for byte. Beside them a journal says which blocks stand in
them, with a checksum each: what a killed process or a power failure left half written is not taken for finished.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ressa.errors import RessaError
from ressa.model.precision import restore_zeros
from ressa.model.sound import check_numbers
from ressa.model.stored import Stored
from ressa.model.structure import Block

WHOLE = 50 * 10**9  # bytes of a file, as transformers has it, unless told
JOURNAL = "finished.jsonl"
LENGTH = 8  # bytes that say how long the header is


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in which file."""

    file: Path
    start: int
    bytes: int
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.start + self.bytes


def layout(tensors: Mapping[str, Tensor], file: Path) -> tuple[bytes, dict[str, Slot]]:
    """(what stands before the tensors, where each of them lies) in a safetensors file of these; only shapes are read.

    The order and the names of dtypes are the library's, asked with tensors of no size.
    """
    asked = save({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()}, {"format": "pt"})
    entries = json.loads(asked[LENGTH : LENGTH + int.from_bytes(asked[:LENGTH], "little")])
    slots, end = dict[str, Slot](), 0
    for name in (name for name in entries if name in tensors):
        start, tensor = end, tensors[name]
        end += tensor.numel() * tensor.element_size()
        entries[name] |= {"shape": list(tensor.shape), "data_offsets": [start, end]}
        slots[name] = Slot(file, start, end - start, tensor.dtype)
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH)
    head = len(text).to_bytes(LENGTH, "little") + text
    return head, {name: replace(slot, start=len(head) + slot.start) for name, slot in slots.items()}


class Shards:
    """The files of `net` in `folder`.

    Args:
        dtypes: what each parameter and buffer is stored in.
        blocks: those that are written one by one; what is outside of them comes last.
        size: of the largest file, in bytes.
        writes: False for a process that reads what another one writes.

    Raises:
        RessaError: a weight belongs to several blocks in the files.
    """

    def __init__(
        self,
        folder: Path,
        net: PreTrainedModel,
        dtypes: Mapping[str, torch.dtype],
        blocks: Sequence[Block],
        size: int | None = None,
        writes: bool = True,
    ) -> None:
        self.writes = writes
        self.folder, self.net, self.dtypes, self.blocks = folder, net, dtypes, blocks
        state = _state(net)
        self._names = {block.name: [name for name in state if name.startswith(f"{block.name}.")] for block in blocks}
        taken = {name for names in self._names.values() for name in names}
        self._rest = [name for name in state if name not in taken]
        empty = {key: torch.empty_like(one, dtype=dtypes.get(key), device="meta") for key, one in state.items()}
        planned = _reverted(net, empty)
        self._keys = {name: list(_reverted(net, {n: empty[n] for n in names})) for name, names in self._names.items()}
        keys = [*chain(*self._keys.values()), *_reverted(net, {name: empty[name] for name in self._rest})]
        if sorted(keys) != sorted(planned):
            raise RessaError(f"{type(net).__name__}: its files hold weights of several blocks in one tensor")
        self._split = split_torch_state_dict_into_shards(planned, max_shard_size=size or WHOLE)
        self._heads, self._slots = dict[str, bytes](), dict[str, Slot]()
        for file, held in self._split.filename_to_tensors.items():
            self._heads[file], slots = layout({key: planned[key] for key in held}, folder / file)
            self._slots |= slots
        self._finished = self._found() if self._laid_out() else set[str]()

    def has(self, block: Block) -> bool:
        """Whether it is written, whole."""
        return block.name in self._finished

    def create(self) -> Stored:
        """Makes the files, as large as they will be, unless they are there.

        Raises:
            OSError: there is no room.
            RessaError: another process should have made them, in another folder it seems.
        """
        if not self._laid_out():
            if not self.writes:
                raise RessaError(f"{self.folder}: not every process sees it: name an output in a folder that all share")
            (self.folder / JOURNAL).unlink(missing_ok=True)
            for file, head in self._heads.items():
                with open(self.folder / file, "wb") as stream:
                    stream.write(head)
                    _reserve(stream.fileno(), self._size(file))
        return Stored(self.folder, [self.folder / file for file in self._heads])

    @torch.no_grad()
    def keep(self, block: Block, changed: Collection[str]) -> None:
        """Writes a block as it is in memory, which must be all there.

        Args:
            changed: its parameters that were pruned. In memory they are rounded to what was written, so that blocks
                after this one get what it will give when it is loaded.

        Raises:
            RessaError: it cannot be written, or a weight is no finite number in the dtype it is stored in.
        """
        state = self.net.state_dict()
        tensors = {name: state[name] for name in self._names[block.name]}
        for name in (name for name in changed if state[name].dtype != self.dtypes[name]):
            tensors[name] = restore_zeros(state[name], state[name], self.dtypes[name])
            state[name].copy_(tensors[name])
        if self.writes:
            check_numbers(self.folder, tensors.items())
            self._enter(block.name, tensors)
        self._finished.add(block.name)

    def finish(self) -> None:
        """Writes what is outside of blocks, and the index. Raises OSError if there is no room."""
        state = self.net.state_dict()
        self._write({name: state[name] for name in self._rest})
        if self._split.is_sharded:
            metadata = {"total_parameters": self.net.num_parameters(), **self._split.metadata}
            index = {"metadata": metadata, "weight_map": self._split.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self.folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")

    def _enter(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes a block, then its line in the journal."""
        try:
            checksum = self._write(tensors)
            with open(self.folder / JOURNAL, "a", encoding="utf-8") as journal:
                journal.write(json.dumps({"block": name, "checksum": checksum}) + "\n")
        except OSError as error:
            raise RessaError(f"{self.folder}: {name} cannot be kept there ({error})") from None

    def _write(self, tensors: Mapping[str, Tensor]) -> int:
        """Each at its place, one copied at a time; their checksum."""
        checksum = 0
        for key, tensor in _reverted(self.net, tensors).items():
            slot = self._slots[key]
            plain = tensor.detach().to("cpu", slot.dtype).contiguous().flatten().view(torch.uint8)
            left = memoryview(plain.numpy().data)
            checksum = zlib.crc32(left, checksum)
            with open(slot.file, "r+b", buffering=0) as stream:
                stream.seek(slot.start)
                while left:
                    left = left[stream.write(left) :]
        return checksum

    def _found(self) -> set[str]:
        """The blocks that the journal names and whose bytes are those that were written."""
        journal, found = self.folder / JOURNAL, set()
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
            try:
                told = json.loads(line)
            except ValueError:  # the process was killed while it wrote this line
                continue
            if told["checksum"] == self._checksum(self._keys[told["block"]]):
                found.add(told["block"])
        return found

    def _checksum(self, keys: Iterable[str]) -> int:
        checksum = 0
        for slot in (self._slots[key] for key in keys):
            with open(slot.file, "rb") as stream:
                stream.seek(slot.start)
                checksum = zlib.crc32(stream.read(slot.bytes), checksum)
        return checksum

    def _size(self, file: str) -> int:
        return max(slot.end for slot in self._slots.values() if slot.file.name == file)

    def _laid_out(self) -> bool:
        """Whether the files are there, made by a run like this one."""
        return all(_begins(self.folder / file, head, self._size(file)) for file, head in self._heads.items())


def _state(net: PreTrainedModel) -> dict[str, Tensor]:
    """What `save_pretrained` writes: each tied tensor once."""
    state = {key: tensor for key, tensor in net.state_dict().items() if key not in (net._keys_to_ignore_on_save or ())}
    return remove_tied_weights_from_state_dict(state, net)


def _reverted(net: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names, and in the cut, that files have."""
    return revert_weight_conversion(net, dict(tensors))


def _begins(file: Path, head: bytes, size: int) -> bool:
    try:
        with file.open("rb") as stream:
            return file.stat().st_size == size and stream.read(len(head)) == head
    except OSError:
        return False


def _reserve(descriptor: int, size: int) -> None:
    """Takes the room on the disk now, where the system can: not after hours."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
