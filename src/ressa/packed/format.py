"""The packed format, version 1, one linear at a time: a dense weight becomes its kept values and a bitmask, and back.

docs/packed.md specifies it for other programs. Pure functions on tensors; nothing here knows of files or models.

Shapes: O outputs, I inputs, B = ceil(I / 8) bytes of bits, N kept weights, S scales: one for each row (int8) or for
each group of kept weights of a row (int4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ressa.errors import RessaError, shown

METHOD = "ressa"  # `quant_method` in config.json
VERSION = 1
PARTS = SHAPE, VALUES, BITMASK, SCALE = "weight", "weight_values", "weight_bitmask", "weight_scale"  # stored tensors
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LARGEST = {"int8": 127, "int4": 7}  # of a quantised value: the scale is symmetric
BITS = {"int8": 8, "int4": 4}
SCALES = {"int8": torch.float32, "int4": torch.bfloat16}
KINDS = {**{dtype: name for name, dtype in FLOATS.items()}, torch.int8: "int8", torch.uint8: "int4"}


@dataclass(frozen=True)
class Packed:
    """One weight (O, I) as it is stored."""

    shape: tuple[int, int]
    values: Tensor  # (N,) of one of FLOATS or int8; int4: (ceil(N / 2),) uint8
    bitmask: Tensor | None  # (O, B) uint8, None: every bit is set
    scale: Tensor | None  # (S,), None of floats
    group: int = 64

    @property
    def kind(self) -> str:
        """bf16, fp16, fp32, int8 or int4."""
        return KINDS[self.values.dtype]

    @property
    def bytes(self) -> int:
        """Of values, bitmask and scales."""
        return sum(tensor.nbytes for tensor in (self.values, self.bitmask, self.scale) if tensor is not None)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored of it, by the last part of each name."""
        found = {SHAPE: torch.tensor(self.shape), VALUES: self.values, BITMASK: self.bitmask, SCALE: self.scale}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def stored_as(tensors: Mapping[str, Tensor], group: int, name: str) -> Packed:
    """What the stored `tensors` of a linear hold, checked. Raises RessaError that names it, as `check` does."""
    shape, values = tensors.get(SHAPE), tensors.get(VALUES)
    if values is None or shape is None or shape.shape != (2,) or shape.dtype != torch.int64:
        raise RessaError(f"{name}: its shape or its values are missing; the packed file is damaged, or not one")
    packed = Packed((int(shape[0]), int(shape[1])), values, tensors.get(BITMASK), tensors.get(SCALE), group)
    check(packed, name)
    return packed


def pack(weight_OI: Tensor, kind: str = "same", group: int = 64) -> Packed:
    """The kept weights in row-major order, as `kind` ("same": the dtype they have), and where they stand.

    Integers are rounded to nearest; a kept weight may become 0, a zero never anything else.

    Raises:
        RessaError: a dtype that the format does not have, or weights that `kind` cannot hold.
    """
    kind = KINDS.get(weight_OI.dtype, str(weight_OI.dtype)) if kind == "same" else kind
    mask_OI = kept_places(weight_OI, kind)
    kept_N, counts_O = weight_OI[mask_OI], mask_OI.sum(1)
    if kind in FLOATS:
        values = kept_N.to(FLOATS[kind])
    elif kind in LARGEST:
        return from_integers(*nearest(kept_N, runs(counts_O, kind, group), kind), mask_OI, kind, group)
    else:
        raise RessaError(f"weights of {kind} cannot be packed as they are: name one of {', '.join(KINDS.values())}")
    if kind in FLOATS and FLOATS[kind] != weight_OI.dtype and not values.isfinite().all():
        raise RessaError(f"holds weights too large for {kind}; name another kind of values")
    return _packed(values, None, mask_OI, group)


def kept_places(weight_OI: Tensor, kind: str) -> Tensor:
    """Which weights are kept, bool (O, I): those that are not zero; of integers all, where that takes fewer bits.

    A zero that is kept is the integer 0. The few that a dense weight has by chance would each cost a row of bits.
    """
    mask_OI = weight_OI != 0
    few = kind in BITS and BITS[kind] * int((~mask_OI).sum()) <= mask_OI.numel()
    return torch.ones_like(mask_OI) if few else mask_OI


def from_integers(integers_N: Tensor, scale_S: Tensor, mask_OI: Tensor, kind: str, group: int) -> Packed:
    """What is stored of kept weights that are integers already, of `kind`, with their scales as in `runs`."""
    values = integers_N if kind == "int8" else _to_nibbles(integers_N)
    return _packed(values, scale_S, mask_OI, group)


def _packed(values: Tensor, scale: Tensor | None, mask_OI: Tensor, group: int) -> Packed:
    rows, columns = mask_OI.shape
    return Packed((rows, columns), values, None if mask_OI.all() else _to_bits(mask_OI), scale, group)


def unpack(packed: Packed, out_OI: Tensor) -> Tensor:
    """Writes the dense weight into `out_OI`, which is returned too; in its dtype, rounded from float32 if quantised."""
    mask_OI = _mask(packed)
    kept_N = packed.values
    if packed.scale is not None:
        counts_O = mask_OI.sum(1) if mask_OI is not None else _full(packed)
        runs_S, count = runs(counts_O, packed.kind, packed.group), int(counts_O.sum())
        integers_N = packed.values if packed.kind == "int8" else _from_nibbles(packed.values, count)
        kept_N = integers_N * packed.scale.float().repeat_interleave(runs_S, output_size=count)
    kept_N = kept_N.to(out_OI.dtype)
    if mask_OI is None:
        return out_OI.copy_(kept_N.view(packed.shape))
    return out_OI.zero_().masked_scatter_(mask_OI, kept_N)


def check(packed: Packed, name: str) -> None:
    """Raises RessaError if any length, dtype or bit contradicts another: then `unpack` would read what is not there."""

    def unless(right: bool, what: str) -> None:
        if not right:
            raise RessaError(f"{name}: {what}; the packed file is damaged, or not one")

    rows, columns = packed.shape
    unless(rows > 0 and columns > 0 and rows * columns < 2**48, f"a weight of {rows} x {columns} cannot be")
    unless(packed.values.dtype in KINDS, f"values of {packed.values.dtype} are unknown")
    unless(packed.values.ndim == 1, "its values are no list")
    if packed.bitmask is None:  # before there is anything of that size
        unless(
            packed.kind == "int4" or len(packed.values) == rows * columns, "its values are not as many as its weights"
        )
        unless(len(packed.values) >= rows * columns // 2, "its values are fewer than its weights")
        counts_O = _full(packed)
    else:
        wanted = (rows, -(-columns // 8))
        unless(packed.bitmask.dtype == torch.uint8, f"a bitmask of {packed.bitmask.dtype}")
        unless(packed.bitmask.shape == wanted, f"its bitmask is {tuple(packed.bitmask.shape)} and should be {wanted}")
        behind = packed.bitmask[:, -1] >> (columns - 1) % 8 >> 1
        unless(not behind.any(), "its bitmask has bits behind the last column")
        counts_O = _counts(packed.bitmask)
    count = int(counts_O.sum())
    stored = -(-count // 2) if packed.kind == "int4" else count
    unless(len(packed.values) == stored, f"{len(packed.values)} values are stored and its bits ask for {stored}")
    if packed.kind == "int4" and count % 2:
        unless(int(packed.values[-1]) < 16, "half a byte behind the last value is not zero")
    _check_scale(packed, counts_O, unless)


def _check_scale(packed: Packed, counts_O: Tensor, unless: Any) -> None:
    if packed.kind in FLOATS:
        unless(bool(packed.values.isfinite().all()), "NaN or infinity among its values")
        unless(packed.scale is None, f"a scale beside values of {packed.kind}")
        return
    unless(packed.scale is not None, f"values of {packed.kind} without a scale")
    scale = packed.scale
    assert scale is not None
    wanted = len(runs(counts_O, packed.kind, packed.group))
    unless(scale.dtype == SCALES[packed.kind], f"scales of {scale.dtype} beside values of {packed.kind}")
    unless(scale.shape == (wanted,), f"its scales are {tuple(scale.shape)} and should be ({wanted},)")
    unless(bool((scale.isfinite() & (scale >= 0)).all()), "a scale that is negative or no number")


def check_config(config: Mapping[str, Any]) -> int:
    """The group size that a `quantization_config` names. Raises RessaError for a newer version, or what is none."""
    version, group = config.get("version"), config.get("group_size", 64)
    if type(version) is not int or version < 1:
        raise RessaError(f"config.json: version {shown(version)} of the packed format; ressa knows 1")
    if version > VERSION:
        raise RessaError(f"config.json: version {version} of the packed format, ressa knows {VERSION}: update ressa")
    if type(group) is not int or not 1 <= group < 2**31:
        raise RessaError(f"config.json: group_size is {shown(group)} and must be a whole number above 0")
    return group


def nearest(kept_N: Tensor, runs_S: Tensor, kind: str, scales: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(int8 integers, scales) of kept weights, `runs_S` of which share each scale: its largest becomes the largest.

    Args:
        scales: their dtype. [as the format has it]

    Raises:
        RessaError: NaN or infinity among them.
    """
    if not kept_N.isfinite().all():
        raise RessaError("holds NaN or infinity, which cannot be quantised")
    kept_N, most = kept_N.float(), LARGEST[kind]
    run_N = torch.arange(len(runs_S), device=kept_N.device).repeat_interleave(runs_S)
    amax_S = kept_N.new_zeros(len(runs_S)).scatter_reduce_(0, run_N, kept_N.abs(), "amax")
    scale_S = (amax_S / most).to(scales or SCALES[kind])
    return to_integers(kept_N, scale_S.float()[run_N], kind), scale_S


def to_integers(weight: Tensor, scale: Tensor, kind: str) -> Tensor:
    """The nearest integers of `kind`, int8; 0 where the scale is 0, as that of weights too small for any other is."""
    most = LARGEST[kind]
    return (weight / scale).where(scale > 0, 0).round_().clamp_(-most, most).to(torch.int8)


def runs(counts_O: Tensor, kind: str, group: int) -> Tensor:
    """How many kept weights each scale is for, (S,): those of a row, or of int4 `group` of them and what is left."""
    if kind == "int8":
        return counts_O
    groups_O = -(-counts_O // group)
    runs_S = counts_O.new_full((int(groups_O.sum()),), group)
    some = groups_O > 0
    runs_S[groups_O.cumsum(0)[some] - 1] = (counts_O - (groups_O - 1) * group)[some]
    return runs_S


def _full(packed: Packed) -> Tensor:
    rows, columns = packed.shape
    return torch.full((rows,), columns, device=packed.values.device)


def _mask(packed: Packed) -> Tensor | None:
    return None if packed.bitmask is None else _from_bits(packed.bitmask)[:, : packed.shape[1]]


def _to_bits(mask_OI: Tensor) -> Tensor:
    """(O, B): bit k of byte b of a row is set where the weight in column 8 b + k is kept."""
    padded = torch.nn.functional.pad(mask_OI, (0, -mask_OI.shape[1] % 8)).unflatten(1, (-1, 8))
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask_OI.device)).sum(2, dtype=torch.uint8)


def _from_bits(bitmask_OB: Tensor) -> Tensor:
    """(O, 8 B), bool."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bitmask_OB.device)
    return (bitmask_OB.unsqueeze(2) >> shifts).bitwise_and_(1).bool().flatten(1)


def _counts(bitmask_OB: Tensor) -> Tensor:
    """(O,): how many bits of each row are set; in little memory, for every linear of a model is counted as it loads."""
    pairs = bitmask_OB - (bitmask_OB >> 1).bitwise_and_(0x55)
    fours = (pairs >> 2).bitwise_and_(0x33).add_(pairs.bitwise_and_(0x33))
    return (fours >> 4).add_(fours).bitwise_and_(0x0F).sum(1)


def _to_nibbles(integers_N: Tensor) -> Tensor:
    """Two to a byte, the first in its low half, in two's complement."""
    pairs = torch.nn.functional.pad(integers_N, (0, len(integers_N) % 2)).view(torch.uint8).bitwise_and(15).view(-1, 2)
    return pairs[:, 0] | (pairs[:, 1] << 4)


def _from_nibbles(bytes_: Tensor, count: int) -> Tensor:
    both = torch.stack([bytes_ & 15, bytes_ >> 4], 1).flatten()[:count].view(torch.int8)
    return (both ^ 8) - 8
