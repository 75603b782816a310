"""The logits with which a model answers: which token each must predict, and only these computed, in every architecture.

Shapes: B batch, T tokens (of the decoder), N chosen positions of the whole batch, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ressa import families
from ressa.data.prompts import IGNORED, is_encoder_decoder
from ressa.errors import RessaError


def forced(batch: Mapping[str, Any], ids: tuple[int, int] | None) -> tuple[dict[str, Any], Tensor]:
    """A teacher-forced batch with `labels` -> what the forward takes, and `targets`, (B, T).

    Without labels the model computes no loss of its own. `ids` is what `decoder_token_ids` gives.
    """
    inputs = dict(batch)
    labels_BT = inputs.pop("labels")
    if ids:
        inputs["decoder_input_ids"] = decoder_inputs(labels_BT, *ids)
    return inputs, targets(labels_BT, encoder_decoder=ids is not None)


def targets(labels_BT: Tensor, *, encoder_decoder: bool) -> Tensor:
    """The token that the logits at each position must predict, IGNORED where that is no answer token, (B, T).

    The labels of a decoder-only model stand beside its inputs, so the logits at t answer for the label at t + 1; those
    of an encoder-decoder are its outputs already.

    >>> targets(torch.tensor([[-100, -100, 7, 8]]), encoder_decoder=False).tolist()
    [[-100, 7, 8, -100]]
    """
    if encoder_decoder:
        return labels_BT
    return torch.cat([labels_BT[:, 1:], torch.full_like(labels_BT[:, :1], IGNORED)], dim=1)


def decoder_inputs(labels_BT: Tensor, start: int, pad: int) -> Tensor:
    """What an encoder-decoder reads while it writes the labels: the start token, then all labels but the last.

    >>> decoder_inputs(torch.tensor([[7, 8, -100]]), start=0, pad=0).tolist()
    [[0, 7, 8]]
    """
    shifted = torch.cat([torch.full_like(labels_BT[:, :1], start), labels_BT[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, pad)


def decoder_token_ids(config: Any) -> tuple[int, int] | None:
    """(decoder start id, pad id) of an encoder-decoder, None for a decoder-only model.

    Raises:
        RessaError: an encoder-decoder whose config has none of them.
    """
    if not is_encoder_decoder(config):
        return None
    configs = [config, *(getattr(config, name) for name in ("text_config", "decoder") if hasattr(config, name))]
    found = []
    for names in (("decoder_start_token_id", "bos_token_id"), ("pad_token_id",)):
        ids = [getattr(one, name, None) for name in names for one in configs]
        if not (known := [number for number in ids if isinstance(number, int)]):
            raise RessaError(f"the model's config has no {names[0]}: an encoder-decoder reads its answers behind one")
        found.append(known[0])
    return found[0], found[1]


def logits_at(model: nn.Module, inputs: dict[str, Any], positions_BT: Tensor) -> Tensor:
    """Logits of `model(**inputs)` at the true positions, batch by batch in order, (N, V).

    The positions are picked in front of the output head, in every architecture: a full (B, T, V) of logits is by far
    the largest tensor of a step, and most of it would be prompt.

    Raises:
        RuntimeError: the head was not entered exactly once with one hidden state for each position.
    """
    entered = 0

    def pick(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal entered
        entered += 1
        hidden_BTD, *rest = args
        chosen_BT = positions_BT.to(hidden_BTD.device)
        if in_front:
            chosen_BT = nn.functional.pad(chosen_BT, (hidden_BTD.shape[1] - chosen_BT.shape[1], 0))
        # as one sequence: some models go on to index their logits by batch and position
        return (hidden_BTD[chosen_BT][None], *rest)

    owner: Any = getattr(model, "module", model)  # as torch wraps a model it distributes
    in_front = families.of(owner.config).joins == "before"
    if owner.get_output_embeddings() is None:  # BLIP keeps its head within its decoder and does not name it
        return model(**inputs, use_cache=False, return_dict=True).logits[positions_BT]
    handle = owner.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        logits_1NV = model(**inputs, use_cache=False, return_dict=True).logits
    finally:
        handle.remove()
    if entered != 1:
        raise RuntimeError(f"{type(model).__name__} entered its output head {entered} times in one forward")
    return logits_1NV.squeeze(0)
