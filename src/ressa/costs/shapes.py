"""What of a model and its work costs depend on: shapes of blocks, lengths of records, sizes of a whole model.

Letters: I inputs and O outputs of linears, T tokens. A multiplication with its addition is two operations. Counted are
matrix products and factorisations; what goes element by element is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ressa.model.matrix import is_expert
from ressa.model.pieces import pieces_of
from ressa.model.precision import matrices_of
from ressa.model.structure import BY_DEFAULT, Block, PartName, Structure

PATCHES = 1024  # of a picture whose size the config does not tell
WIDE = 4  # bytes of a float32, which all statistics, solvers and repair use
_PROJECTIONS = re.compile(r"(q|k|v|query|key|value)(_proj|_lin|_linear)?$")
_GATED = re.compile(r"(gate|up|w1|w3|wi_\d|gate_proj|up_proj)$")
_FUSED = re.compile(r"qkv|query_key_value|in_proj")
_ACROSS = re.compile(r"cross|EncDec|encoder_attn")


@dataclass(frozen=True)
class Read:
    """Linears of a block that read the same input: I inputs, O outputs of all of them together.

    `attends` is the width over which they attend (0 for a multilayer perceptron), `across` that they read another
    stream than their block's, `share` how much of the tokens they hear, as one of several experts.
    """

    inputs: int
    outputs: int
    linears: int
    attends: int = 0
    across: bool = False
    share: float = 1.0

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """What of a block its costs depend on; `fused` of its weights are experts that share a parameter.

    `layer_norms` says that its norms are torch's own, which keep their input and no more.
    """

    part: PartName
    decoder: bool
    reads: tuple[Read, ...]
    parameters: int
    fused: int = 0
    layer_norms: bool = False

    @property
    def width(self) -> int:
        return self.reads[0].inputs if self.reads else 0


@dataclass(frozen=True)
class Workload:
    """How much runs through the model: `tokens` of a sample in the language model, `patches` in the vision tower.

    `answers` of the tokens are to be answered; the decoder of an encoder-decoder reads them alone.
    """

    samples: int
    batch_size: int
    tokens: int
    patches: int
    answers: int
    encoder_decoder: bool = False

    def length(self, shape: Shape, across: bool = False) -> int:
        """Tokens of one sample that a block (or what it reads from across) has."""
        if shape.part != "language":
            return self.patches
        if self.encoder_decoder:
            return self.answers if shape.decoder and not across else self.tokens
        return self.patches if across else self.tokens


def shape_of(block: Block) -> Shape:
    """The shape of a block. Names tell which linears read the same input; others are taken to read alone."""
    groups: dict[Any, list[tuple[str, Any]]] = {}
    for name, linear in block.linears.items():
        parent, _, leaf = name.rpartition(".")
        crossed = bool(_ACROSS.search(parent)) and leaf[0] in "kv"
        kind = "qkv" if _PROJECTIONS.match(leaf) else "gated" if _GATED.match(leaf) else None
        groups.setdefault((parent, kind, linear.weight.shape[1], crossed) if kind else name, []).append((leaf, linear))
    share = _heard(block)
    reads = tuple(_read(key, members, share) for key, members in groups.items())
    parameters = sum(parameter.numel() for parameter in block.module.parameters())
    fused = sum(linear.weight.numel() for linear in block.linears.values() if is_expert(linear))
    norms = any(isinstance(module, nn.LayerNorm) for module in block.module.modules())
    return Shape(block.part, block.stack == "decoder", reads, parameters, fused, norms)


def _heard(block: Block) -> float:
    """The share of the tokens that an expert of the block is sent, from what its router says; else all of them."""
    for module in block.module.modules():
        chosen, of = getattr(module, "top_k", None), getattr(module, "num_experts", None)
        if isinstance(chosen, int) and isinstance(of, int):
            return chosen / of
    return 1.0


def _read(key: Any, members: list[tuple[str, Any]], share: float) -> Read:
    outputs = sum(len(linear.weight) for _, linear in members)
    leaf, first = members[0]
    attends = outputs // 3 if _FUSED.search(leaf) else 0
    if isinstance(key, tuple) and key[1] == "qkv":
        attends = sum(len(linear.weight) for leaf, linear in members if leaf[0] == "q")
    heard = share if is_expert(first) else 1.0
    return Read(first.weight.shape[1], outputs, len(members), attends, isinstance(key, tuple) and key[3], heard)


def forward_flop(shape: Shape, load: Workload, samples: float) -> float:
    """One pass of `samples` through a block: linears and attention (whole, where a model's has windows)."""
    length, total = load.length(shape), 0.0
    for read in shape.reads:
        total += 2 * samples * load.length(shape, read.across) * read.weights
        across = any(other.across for other in shape.reads) and read.linears == 1
        total += 4 * samples * length * load.length(shape, across) * read.attends
    return total


@dataclass(frozen=True)
class Sizes:
    """What costs depend on of a whole model.

    `outside` are the parameters that pruning holds all the time, those of no linear in a block; `alone` those that it
    holds where no module runs, with those of the largest piece it reads by itself; `width` is the bytes of a stored
    weight, `narrow` the numbers in matrices of linears, `trained` those of norms and biases, which repair
    trains as they are; `head` the weights of the output head over so many `words`, and `tied` that they are the
    embedding's too. `heads` are those of attention in vision and in language.
    """

    shapes: tuple[Shape, ...]
    parameters: int
    outside: int
    alone: int
    width: int
    narrow: int
    trained: int
    head: int
    tied: bool
    words: int
    heads: tuple[int, int]

    def bytes(self, *, narrow: bool) -> int:
        """In repair: all in float32, or, if `narrow`, the matrices in half of that."""
        return self.parameters * WIDE - (self.narrow * WIDE // 2 if narrow else 0)


def sizes_of(net: PreTrainedModel, parts: Structure, width: int) -> Sizes:
    """The sizes of a model, whose weights may be on no device, that is stored in `width` bytes a weight."""
    blocks = [block for block in parts.blocks(BY_DEFAULT) if block.linears]
    vectors = sum(p.numel() for block in blocks for p in block.module.parameters() if p.ndim == 1)
    head, text = net.get_output_embeddings(), net.config.get_text_config()
    apart = matrices_of(net, WIDE if width < WIDE else 2)  # a model on no device is float32 whatever is stored
    total = sum(part.parameters for part in parts.parts.values())
    outside = total - sum(linear.weight.numel() for block in parts.blocks() for linear in block.linears.values())
    return Sizes(
        tuple(shape_of(block) for block in blocks),
        total,
        outside,
        _alone(net, parts, total) or outside + max((shape_of(block).parameters for block in blocks), default=0),
        width,
        sum(parameter.numel() for parameter in apart),
        vectors,
        head.weight.numel() if head is not None else 0,
        head is not None and all(head.weight is not parameter for parameter in apart),
        text.vocab_size,
        (_heads(getattr(net.config, "vision_config", None)), _heads(text)),
    )


def _alone(net: PreTrainedModel, parts: Structure, total: int) -> int:
    """The parameters that have no piece of their own and those of the largest piece; 0 if there are no pieces."""
    pieces = [sum(parameter.numel() for parameter in piece.module.parameters()) for piece in pieces_of(net, parts)]
    return total - sum(pieces) + max(pieces) if pieces else 0


def _heads(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", None) or 16
    return max(heads) if isinstance(heads, list | tuple) else heads  # one for each stage: those of the most


def picture(config: Any) -> tuple[int, int]:
    """(patches of a picture in the vision tower, its tokens in the language model)."""
    vision, text = getattr(config, "vision_config", None), config.get_text_config()
    if vision is None:
        return 0, 0
    size, patch = (_side(getattr(vision, name, None)) for name in ("image_size", "patch_size"))
    patches = (size // patch) ** 2 if size and patch and size > patch else PATCHES
    if getattr(text, "cross_attention_layers", None):
        return patches, 0  # text attends to the picture instead of reading it
    for holder, name in (
        (config, "image_seq_length"),
        (config, "mm_tokens_per_image"),
        (config, "num_query_tokens"),
        (text, "num_image_tokens"),
    ):
        if isinstance(value := getattr(holder, name, None), int):
            return patches, value
    merged = getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", None) or 1
    return patches, patches // int(merged) ** 2


def _side(value: Any) -> int:
    value = value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value
    return value if isinstance(value, int) else 0
