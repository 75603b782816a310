"""Where in a model its parts begin, as far as transformers tells it, and to which part a module belongs.

transformers names the decoder, the text encoder and the encoders of pictures and sounds (`get_encoder`,
`get_decoder`). A sub-model that takes pictures as its main input sees, too, whether it is named there or not: GIT's
image encoder, a second tower for high resolution or for videos, the encoder of a model that only reads pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from ressa.families import CONNECTORS, PATCHES, Names

PartName = Literal["vision", "audio", "connector", "language"]
Stack = Literal["encoder", "decoder"]

PICTURES: Names = ("pixel_values", "pixel_values_videos", "flattened_patches")
SOUNDS: Names = ("input_features", "input_values")


@dataclass(frozen=True)
class Root:
    """Every module whose name is `name` or begins with `name.` belongs to `part`, unless a lower root claims it."""

    name: str
    part: PartName
    stack: Stack | None


def find_roots(model: PreTrainedModel) -> list[Root]:
    """Where vision, sound, the language encoder and the language decoder begin."""
    names = {id(module): name for name, module in model.named_modules()}
    decoder, encoder = _innermost(model, "get_decoder"), _innermost(model, "get_encoder")
    if decoder is model.get_output_embeddings():  # ModernBERT calls its head so
        decoder = model.base_model
    language: dict[Stack, nn.Module] = {"decoder": decoder}
    # a model without an encoder answers with itself, one that only reads pictures with its eyes
    if not contains(encoder, decoder) and _main_input(model.get_encoder()) not in PICTURES:
        language = {"encoder": encoder, **language}
    roots: list[Root] = []
    senses: tuple[tuple[PartName, str, Names], ...] = (("vision", "image", PICTURES), ("audio", "audio", SOUNDS))
    for part, modality, inputs in senses:
        towers = _towers(model, modality, inputs, list(language.values()))
        roots += [Root(names[id(tower)], part, "encoder") for tower in towers]
    return roots + [Root(names[id(module)], "language", stack) for stack, module in language.items()]


def home(name: str, roots: list[Root]) -> Root | None:
    """The lowest root that `name` stands below; one of its own if its name says connector; None if it is nowhere."""
    above = [root for root in roots if below(name, root.name)]
    root = max(above, key=lambda root: len(root.name), default=None)
    if _says_connector(name, root, roots):
        return Root(name, "connector", None)
    return root


def below(name: str, root: str) -> bool:
    """Whether `name` is `root` or stands within it."""
    return root in ("", name) or name.startswith(root + ".")


def contains(outer: nn.Module, inner: nn.Module) -> bool:
    """Whether `inner` is `outer` or a module of it."""
    return any(module is inner for module in outer.modules())


def sees(roots: list[Root]) -> bool:
    """Whether the model has a part for pictures."""
    return any(root.part == "vision" for root in roots)


def _says_connector(name: str, root: Root | None, roots: list[Root]) -> bool:
    """Whether a name says so before it comes to a number: within repeated blocks, names say other things.

    Below a language root only if that also holds the eyes: a decoder on its own has projections enough.
    """
    if not sees(roots) or (root and root.part == "audio"):
        return False
    pieces = name.split(".")[len(root.name.split(".")) if root and root.name else 0 :]
    numbered = next((at for at, piece in enumerate(pieces) if piece.isdigit()), len(pieces))
    words = CONNECTORS
    if root and root.part == "vision":
        words = tuple(word for word in CONNECTORS if word not in PATCHES)
    elif root and not any(other is not root and below(other.name, root.name) for other in roots):
        return False
    return any(word in piece.lower() for piece in pieces[:numbered] for word in words)


def _towers(model: PreTrainedModel, modality: str, inputs: Names, language: list[nn.Module]) -> list[nn.Module]:
    """The highest sub-models for `modality` that hold no language: the one that is named, and those that take it."""
    named = model.get_encoder(modality=modality)
    while isinstance(named, PreTrainedModel) and any(contains(named, stack) for stack in language):
        inner = named.get_encoder(modality=modality)
        if inner is named:
            break
        named = inner
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        takes = module is named or (isinstance(module, PreTrainedModel) and _main_input(module) in inputs)
        mixed = any(contains(module, stack) for stack in language)
        between = any(word in name.lower() for word in CONNECTORS)  # BLIP-2's Q-Former claims to read pictures
        if takes and not mixed and not between and not any(contains(tower, module) for tower in found):
            found.append(module)
    return found


def _main_input(module: nn.Module) -> str:
    return getattr(module, "main_input_name", "")


def _innermost(model: PreTrainedModel, accessor: str) -> nn.Module:
    """Where `accessor` leads in the end: BLIP-2's decoder is a T5 model, whose decoder is the stack."""
    module: nn.Module = model
    while isinstance(module, PreTrainedModel) and (inner := getattr(module, accessor)()) is not module:
        module = inner
    return module
