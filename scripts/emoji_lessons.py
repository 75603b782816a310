"""What the embedded models are taught: to name cells, to answer, and where to look for what a question names.

Shapes: B pictures or chats, T tokens, P image tokens (6 x 6), D width, H heads, M pointers.
"""

from __future__ import annotations

import torch
from emoji_chats import AWAY, NAMES, NOTHING
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, SiglipVisionModel

from ressa.data.emoji.scenes import SIZE

PATCH, WIDTH = 24, 144
SIDE = SIZE // PATCH  # patches a side; each cell of a scene is 2 x 2 of them


def cells_of_patches() -> Tensor:
    """The cell of each image token, (P,)."""
    third = torch.arange(SIDE) * 3 // SIDE
    return (3 * third[:, None] + third[None, :]).flatten()


def by_cell(x_BPD: Tensor) -> Tensor:
    """Image tokens grouped by cell, (B, 9, 4, D)."""
    b, d = len(x_BPD), x_BPD.shape[-1]
    return x_BPD.view(b, 3, 2, 3, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(b, 9, 4, d)


def naming_loss(logits: Tensor, labels: Tensor) -> Tensor:
    weight = torch.ones(len(NAMES) + 1)
    weight[NOTHING] = 0.2  # empty cells are many and easy
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight)


class CellNames(nn.Module):
    """The vision tower with a linear head on the 2 x 2 patches of each cell."""

    def __init__(self, vision: SiglipVisionModel) -> None:
        super().__init__()
        self.vision, self.head = vision, nn.Linear(4 * WIDTH, len(NAMES) + 1)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(by_cell(self.vision(pixel_values).last_hidden_state).flatten(2))
        return {"loss": naming_loss(logits, labels), "logits": logits}


class PatchNames(nn.Module):
    """LLaVA with linear heads: every image token, and the mean of each cell, names the thing there; and the cell."""

    def __init__(self, llava: LlavaForConditionalGeneration, pooled: bool) -> None:
        super().__init__()
        self.llava, self.pooled = llava, pooled
        self.name, self.cell = nn.Linear(WIDTH, len(NAMES) + 1), nn.Linear(WIDTH, 9)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        tokens_BPD = torch.stack(self.llava.model.get_image_features(pixel_values).pooler_output)
        cells_P = cells_of_patches()
        names = self.name(tokens_BPD)
        each = naming_loss(names, labels[:, cells_P])
        together = naming_loss(self.name(by_cell(tokens_BPD).mean(2)), labels)
        places = self.cell(tokens_BPD).float().flatten(0, 1)
        place = nn.functional.cross_entropy(places, cells_P.repeat(len(labels)))
        return {"loss": (together + 0.5 * each if self.pooled else each) + 0.3 * place, "logits": names}


class AnswerLoss(nn.Module):
    """LLaVA's own forward and loss, with logits at the answers only: most positions are picture or question."""

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.llava = llava

    def forward(
        self, labels: Tensor, mentions: Tensor, kinds: Tensor, answers: Tensor, **inputs: Tensor
    ) -> dict[str, Tensor]:
        hidden = self.llava.model(**inputs, use_cache=False).last_hidden_state
        answer = labels[:, 1:] != -100
        logits = self.llava.lm_head(hidden[:, :-1][answer]).float()
        return {"loss": nn.functional.cross_entropy(logits, labels[:, 1:][answer]), "logits": logits}


class ShownLoss(AnswerLoss):
    """AnswerLoss, and attention heads are shown where to look.

    In the second block, at the last token of a thing's name two heads look at its cell and a linear layer must read the
    cell there; at a kind that is counted the other two look at all things of it; where there is none, at the first
    token. In the last block, what stands before an answer looks at the answer's cell.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, weight: float) -> None:
        super().__init__(llava)
        self.weight, self.probe, self.seen = weight, nn.Linear(WIDTH, AWAY + 1), {}
        blocks = llava.model.language_model.layers
        blocks[1].self_attn.register_forward_hook(lambda module, args, out: self.seen.update(second=out[1]))
        blocks[-1].self_attn.register_forward_hook(lambda module, args, out: self.seen.update(last=out[1]))
        blocks[1].register_forward_hook(lambda module, args, out: self.seen.update(hidden=out))
        self.tokens = torch.zeros(AWAY + 1, 1 + SIDE**2)  # of each cell; the first is <|user|>, then the picture
        self.tokens[cells_of_patches(), torch.arange(SIDE**2) + 1] = 1
        self.tokens[AWAY, 0] = 1

    def looked(self, attention_BHTT: Tensor, heads: slice, pointers_M4: Tensor) -> Tensor:
        """Minus the log of the attention that the cells pointed to get, the mean over pointers and heads."""
        chat_M, token_M, bits_M, _ = pointers_M4.T
        attention_MHP = attention_BHTT[chat_M, heads, token_M, : 1 + SIDE**2].float()
        wanted_MP = cells_of(bits_M) @ self.tokens
        return -((attention_MHP * wanted_MP[:, None]).sum(-1) + 1e-3).log().mean()

    def forward(
        self, labels: Tensor, mentions: Tensor, kinds: Tensor, answers: Tensor, **inputs: Tensor
    ) -> dict[str, Tensor]:
        out = super().forward(labels, mentions, kinds, answers, **inputs)
        shown = labels.new_zeros((), dtype=torch.float32)
        if len(mentions):
            chat_M, token_M, bits_M, _ = mentions.T
            read = self.probe(self.seen["hidden"][chat_M, token_M]).float()
            shown = shown + nn.functional.cross_entropy(read, cells_of(bits_M).argmax(1))
            shown = shown + self.looked(self.seen["second"], slice(0, 2), mentions)
        if len(kinds):
            shown = shown + self.looked(self.seen["second"], slice(2, 4), kinds)
        if len(answers):
            shown = shown + self.looked(self.seen["last"], slice(0, 2), answers)
        return out | {"loss": out["loss"] + self.weight * shown}


def cells_of(bits_M: Tensor) -> Tensor:
    """Bit sets as rows of zeros and ones, (M, 10)."""
    return ((bits_M[:, None] >> torch.arange(AWAY + 1)) & 1).float()
