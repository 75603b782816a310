"""Image-text matching with BLIP-2's own head (Li et al. 2023, section 3.2): `Blip2ForImageTextRetrieval`.

The contrastive similarity makes a shortlist for each picture, which the matching head, that reads both, orders; as in
LAVIS the score is the sum of the two, and the shortlist has 128 captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import transformers

from ressa import families
from ressa.answering.generate import eval_mode
from ressa.data.prompts import tokenizer_of
from ressa.data.records import Record
from ressa.model.load import read_config, resolve, weights
from ressa.model.pickles import check_pickle
from ressa.model.processor import load_processor

SHORTLIST = 128
NOT_LISTED = -100.0
SETTINGS = {"retrieval": f"matching head plus contrastive similarity, shortlist of {SHORTLIST}"}


def fits(model: Any) -> bool:
    """Whether the model has a head that tells if a caption fits a picture."""
    return hasattr(model, "itm_head") and hasattr(model, "qformer")


def holds(name: Any) -> bool:
    """Whether a folder or hub name holds its family's class with such a head."""
    config = read_config(name)
    return list(config.architectures or []) == [families.of(config).matcher]


def load(name: Any, *, dtype: Any = None) -> tuple[Any, Any]:
    """(model, processor) of such a folder or hub name.

    Raises:
        RessaError: no such model, or weights that are missing from it.
    """
    check_pickle(resolve(name))
    config, processor = read_config(name), load_processor(name, resolve(name), text_only=False)
    return weights(name, config, dtype, getattr(transformers, families.of(config).matcher)).eval(), processor


def scorer(
    model: Any, processor: Any, pictures: Sequence[Record], captions: Sequence[str], batch_size: int
) -> Callable[[int], list[float]]:
    """A function that scores picture `i` with every caption.

    A caption is scored by the head if it is among the most similar of the picture, or the picture among those of the
    caption; so there is a first pass over all pictures.
    """
    with eval_mode(model):
        texts_CD = torch.cat(
            [_text(model, processor, captions[k : k + batch_size]) for k in _starts(captions, batch_size)]
        )
        alike_PC = torch.stack([_similarities(model, _sight(model, processor, p), texts_CD) for p in pictures])
    listed_PC = torch.zeros_like(alike_PC, dtype=torch.bool)
    listed_PC.scatter_(1, alike_PC.topk(min(SHORTLIST, len(captions)), 1).indices, True)
    listed_PC.scatter_(0, alike_PC.topk(min(SHORTLIST, len(pictures)), 0).indices, True)

    def score(i: int) -> list[float]:
        chosen = listed_PC[i].nonzero().flatten().tolist()
        row = [NOT_LISTED] * len(captions)
        with eval_mode(model):
            sight = _sight(model, processor, pictures[i])
            for start in _starts(chosen, batch_size):
                part = chosen[start : start + batch_size]
                matched = _match(model, processor, sight, [captions[c] for c in part])
                for c, value in zip(part, matched.tolist(), strict=True):
                    row[c] = value + float(alike_PC[i, c])
        return row

    return score


def _starts(items: Sequence[Any], size: int) -> range:
    return range(0, len(items), size)


def _sight(model: Any, processor: Any, record: Record) -> torch.Tensor:
    """What the vision tower makes of a picture: (1, patches, width)."""
    first = next(model.parameters())
    pixels = processor.image_processor(images=record.open_image(), return_tensors="pt")["pixel_values"]
    return model.vision_model(pixel_values=pixels.to(first.device, first.dtype))[0]


def _tokens(model: Any, processor: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = tokenizer_of(processor)(list(texts), padding=True, padding_side="right", return_tensors="pt")
    device = next(model.parameters()).device
    return tokens["input_ids"].to(device), tokens["attention_mask"].to(device)


def _similarities(model: Any, sight_1PW: torch.Tensor, texts_CD: torch.Tensor) -> torch.Tensor:
    """Cosines (C) of a picture with captions: of its queries the nearest."""
    mask = torch.ones(sight_1PW.shape[:-1], dtype=torch.long, device=sight_1PW.device)
    seen = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=sight_1PW, encoder_attention_mask=mask)
    queries_QD = F.normalize(model.vision_projection(seen[0].to(model.vision_projection.weight.dtype)), dim=-1)[0]
    return (texts_CD @ queries_QD.T).amax(1).float().cpu()


def _text(model: Any, processor: Any, texts: Sequence[str]) -> torch.Tensor:
    """Unit vectors (B, D) of captions."""
    ids_BT, mask_BT = _tokens(model, processor, texts)
    embeds = model.embeddings(input_ids=ids_BT)
    read = model.qformer(query_embeds=embeds, query_length=0, attention_mask=mask_BT)[0][:, 0]
    return F.normalize(model.text_projection(read.to(model.text_projection.weight.dtype)), dim=-1)


def _match(model: Any, processor: Any, sight_1PW: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
    """The head's logit (B) that each caption fits the picture, mean over the queries."""
    ids_BT, mask_BT = _tokens(model, processor, texts)
    queries = model.query_tokens.expand(len(texts), -1, -1)
    seen = torch.ones(queries.shape[:-1], dtype=torch.long, device=ids_BT.device)
    sight = sight_1PW.expand(len(texts), -1, -1)
    read = model.qformer(
        query_embeds=model.embeddings(input_ids=ids_BT, query_embeds=queries),
        query_length=queries.shape[1],
        attention_mask=torch.cat([seen, mask_BT], 1),
        encoder_hidden_states=sight,
        encoder_attention_mask=torch.ones(sight.shape[:-1], dtype=torch.long, device=sight.device),
    )[0]
    return model.itm_head(read[:, : queries.shape[1]].to(model.itm_head.weight.dtype))[..., 1].mean(1).float()
