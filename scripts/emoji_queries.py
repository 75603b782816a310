"""What `emoji-instructblip` is taught: every query names its cell and finds what the question names; then answers.

Shapes: B scenes, R questions, Q queries (one a cell), T tokens of a question, P image tokens (the class token first),
D width, H heads, M pointers, A tokens of an answer.
"""

from __future__ import annotations

import re

import torch
from emoji_chats import AWAY, NAMES, NUMBER, SIDE, Asker, Pointer, padded, table
from emoji_lessons import WIDTH, cells_of, cells_of_patches, naming_loss
from emoji_tower import SeenScenes
from torch import Tensor, nn
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor
from transformers.models.instructblip.modeling_instructblip import BaseModelOutputWithVisionQformerOutputs

from ressa.data.emoji.scenes import PLACES, Scene
from ressa.data.emoji.things import KINDS, things
from ressa.families import CAPTION, QUESTION

QUERIES = 9
SAID = tuple(part.strip() for part in QUESTION.split("{}"))  # before and after a question
KIND_OF = torch.tensor([list(KINDS).index(thing.kind) for thing in things()] + [len(KINDS)])  # the last: of nothing
NUMBER_OF_KIND = {kind: i for i, kind in enumerate(KINDS)}
ROWS = ("top", "middle", "bottom")


def read_in(shown: Scene, question: str, answer: str) -> tuple[int, bool] | None:
    """The cells that an answer is about, a bit each, and whether it is read there; None if it is not about cells."""
    bits = {p.thing.name: 1 << p.cell for p in shown.placed}
    if match := re.fullmatch(r"What (?:kind of thing )?is in the (.*)\?", question):
        return 1 << PLACES.index(match[1]), True
    if question == "What is this?" or re.match(f"What is {SIDE}", question):
        return bits[answer], True
    if match := re.fullmatch(r"Where is the (.*)\?", question):
        return bits[match[1]], True
    if match := re.fullmatch(r"Is there an? (.*)\?", question):
        return bits.get(match[1], 0), False
    if match := re.fullmatch(r"How many things are in the (.*) row\?", question):
        return sum(1 << p.cell for p in shown.placed if p.cell // 3 == ROWS.index(match[1])), False
    if match := re.fullmatch(r"How many (.*) are there\?", question):
        kind = NUMBER.get(match[1])
        return sum(1 << p.cell for p in shown.placed if kind in (None, NUMBER_OF_KIND[p.thing.kind])), False
    return None


class Questions:
    """Collates scene numbers to up to `turns` questions about each, as InstructBLIP reads them, with their pointers.

    `seen` (B, P, D) is what the tower makes of the scenes, `scene` (R,) which of them a question is about, `cells` (R,)
    the cells that its answer is about (-1: none) and `reads` (R,) whether the answer is read there.
    """

    def __init__(
        self, scenes: SeenScenes, processor: InstructBlipProcessor, turns: int, kinds: dict[str, float]
    ) -> None:
        self.scenes, self.ask = scenes, Asker(processor.tokenizer, turns, kinds)
        self.pad, self.end = processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id
        self.image = [processor.tokenizer.convert_tokens_to_ids("<image>")] * QUERIES

    def prompt(self, question: str) -> tuple[list[int], int]:
        """The tokens of a prompt, and at which of them the question itself begins."""
        if question == CAPTION:
            return self.ask.tokens(CAPTION), 0
        before, after = (self.ask.tokens(part) for part in SAID)
        return [*before, *self.ask.tokens(question), *after], len(before)

    def __call__(self, batch: list[int]) -> dict[str, Tensor]:
        prompts, answers, scene, about = [], [], [], []
        pointers: dict[str, list[Pointer]] = {"mentions": [], "kinds": [], "answers": []}
        for b, index in enumerate(batch):
            shown = self.scenes.scenes[index]
            for question, answer in self.ask.asked(shown):
                ids, start = self.prompt(question)
                for what, token, cells, number in self.ask.pointed(shown, question, answer):
                    pointers[what].append(Pointer(len(prompts), start + token, cells, number))
                prompts.append(ids)
                answers.append([*self.ask.tokens(answer), self.end])
                scene.append(b)
                about.append(read_in(shown, question, answer) or (-1, False))
        few = len(batch) * self.ask.turns * 7 // 8  # few shapes: each new one costs the CPU's kernels time
        prompts, answers, scene, about = prompts[:few], answers[:few], scene[:few], about[:few]
        batch, pointers = batch[: scene[-1] + 1], {k: [p for p in v if p.chat < few] for k, v in pointers.items()}
        ids_RT = padded(prompts, -(-max(map(len, prompts)) // 8) * 8, self.pad)
        full_RT = torch.cat([torch.tensor([self.image] * len(prompts)), ids_RT], 1)
        cells, reads = zip(*about, strict=True)
        return {
            "seen": self.scenes.looks(batch),
            "named": self.scenes.named[batch],
            "scene": torch.tensor(scene),
            "qformer_input_ids": ids_RT,
            "input_ids": full_RT,
            "attention_mask": (full_RT != self.pad).long(),
            "labels": padded(answers, -(-max(map(len, answers)) // 2) * 2, -100),
            "cells": torch.tensor(cells),
            "reads": torch.tensor(reads),
            "mentions": table(pointers["mentions"]),
            "kinds": table(pointers["kinds"]),
        }


class Lessons(nn.Module):
    """InstructBLIP behind its frozen tower, its own loss on answers (if `answering`), and lessons of weight `shown`.

    The Q-Former: each query looks at its cell in the first block, and names what stands there behind the second and the
    last; behind the second the last token of a name in the question names the same thing by the same linear layer, so
    that both are told apart by the same features; in the last block the query of the thing looks at that token, the
    others at the first of the question. Behind it a linear layer must tell which queries the question names.

    The T5: behind the encoder a linear layer must tell which cells the answer is about; where the answer is read in one
    cell, two heads of the last decoder block look there.
    """

    def __init__(self, blip: InstructBlipForConditionalGeneration) -> None:
        super().__init__()
        self.blip, self.heard, self.told = blip, {}, {}
        self.name, self.kind = nn.Linear(WIDTH, len(NAMES) + 1), nn.Linear(WIDTH, len(KINDS) + 1)
        self.named, self.found = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 1)
        first, second, last = blip.qformer.encoder.layer
        self.hear("looks", first.crossattention.attention, 1)
        self.hear("middle", second, None)
        self.hear("matches", last.attention.attention, 1)
        self.hear("reads", blip.language_model.decoder.block[-1].layer[1].EncDecAttention, 2)
        self.patches_QP = nn.functional.one_hot(cells_of_patches(), QUERIES).T.float()

    def begin(self, answering: bool, shown: float) -> None:
        """What learns: all but the tower and, without answers, the language model."""
        self.answering, self.shown = answering, shown
        self.blip.vision_model.requires_grad_(False)
        for module in (self.blip.language_projection, self.blip.language_model, self.found):
            module.requires_grad_(answering)
        last = self.blip.qformer.encoder.layer[-1]
        for unheard in (last.intermediate, last.output):
            unheard.requires_grad_(False)  # the question behind the last block: nobody reads it

    def hear(self, what: str, module: nn.Module, index: int | None) -> None:
        module.register_forward_hook(
            lambda module, args, out: self.heard.update({what: out if index is None else out[index]})
        )

    def forward(
        self,
        seen: Tensor,
        named: Tensor,
        scene: Tensor,
        qformer_input_ids: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        cells: Tensor,
        reads: Tensor,
        mentions: Tensor,
        kinds: Tensor,
    ) -> dict[str, Tensor]:
        queries_RQD = self.blip.qformer(
            input_ids=qformer_input_ids,
            attention_mask=attention_mask,
            query_embeds=self.blip.query_tokens.expand(len(scene), -1, -1),
            encoder_hidden_states=seen[scene],
        ).last_hidden_state[:, :QUERIES]
        first_B = torch.searchsorted(scene, torch.arange(len(seen)))
        parts = self.of_queries(queries_RQD, named, first_B, mentions, kinds)
        if self.answering:
            features = BaseModelOutputWithVisionQformerOutputs(pooler_output=self.blip.language_projection(queries_RQD))
            said = self.blip(
                pixel_values=None,
                qformer_input_ids=qformer_input_ids,
                input_ids=input_ids,
                attention_mask=attention_mask,
                labels=labels,
                mm_encoder_outputs={"image": features},
            )
            encoded_RQD = said.language_model_outputs.encoder_last_hidden_state[:, :QUERIES]
            parts |= self.of_answers(encoded_RQD, labels, cells, reads)
        loss = self.shown * sum(parts.values()) + (said.loss if self.answering else 0)
        self.told = {name: part.item() for name, part in parts.items()}
        if self.answering:
            self.told["answers"] = said.loss.item()
        return {"loss": loss}

    def of_queries(
        self, queries_RQD: Tensor, named: Tensor, first_B: Tensor, mentions: Tensor, kinds: Tensor
    ) -> dict[str, Tensor]:
        """The lessons of the Q-Former; `first_B` is the first question about each scene."""
        middle_RTD, entropy = self.heard["middle"], nn.functional.cross_entropy
        looked_BHQ = (self.heard["looks"][first_B, :2, :, 1:].float() * self.patches_QP).sum(-1)
        parts = {"looks": -(looked_BHQ + 1e-3).log().mean()}
        for what, x_BQD in (("middle", middle_RTD[first_B, :QUERIES]), ("last", queries_RQD[first_B])):
            parts[f"name {what}"] = naming_loss(self.name(x_BQD), named)
            parts[f"kind {what}"] = 0.5 * entropy(self.kind(x_BQD).float().flatten(0, 1), KIND_OF[named].flatten())
        asked_RQ3 = torch.zeros(*queries_RQD.shape[:2], 3)  # is the thing of the first name, of the second, of the kind
        for what, pointers_M4 in (("mention", mentions), ("kind", kinds)):
            if len(pointers_M4):
                row_M, token_M, bits_M, number_M = pointers_M4.T
                head, heads = (self.name, slice(0, 2)) if what == "mention" else (self.kind, slice(2, 4))
                parts[what] = 0.5 * entropy(head(middle_RTD[row_M, QUERIES + token_M]).float(), number_M)
                again_M = torch.cat([row_M.new_zeros(1), (row_M[1:] == row_M[:-1]).long()])
                asked_RQ3[row_M, :, again_M if what == "mention" else 2] = hit_MQ = cells_of(bits_M)[:, :QUERIES]
                parts[f"{what} matched"] = self.matched(row_M, token_M, hit_MQ, heads)
        parts["asked"] = 3 * nn.functional.binary_cross_entropy_with_logits(self.named(queries_RQD).float(), asked_RQ3)
        return parts

    def matched(self, row_M: Tensor, token_M: Tensor, hit_MQ: Tensor, heads: slice) -> Tensor:
        """Minus the log of the attention of named queries to the name's token, of the others to the first token."""
        at_RHQT = self.heard["matches"][:, heads, :QUERIES]
        wanted_RQ = torch.full((len(at_RHQT), QUERIES), QUERIES)
        m, q = hit_MQ.nonzero(as_tuple=True)
        wanted_RQ[row_M[m], q] = QUERIES + token_M[m]
        rows, wanted = row_M.unique(), wanted_RQ[row_M.unique()]
        got = at_RHQT[rows].gather(3, wanted[:, None, :, None].expand(-1, at_RHQT.shape[1], -1, 1))[..., 0].float()
        loss_RHQ = -(got + 1e-3).log()
        hit = (wanted != QUERIES)[:, None].expand_as(loss_RHQ)
        return (loss_RHQ[hit].sum() / hit.sum().clamp(min=1) + loss_RHQ[~hit].mean()) / 2

    def of_answers(self, encoded_RQD: Tensor, labels: Tensor, cells: Tensor, reads: Tensor) -> dict[str, Tensor]:
        """The lessons of the T5."""
        about_R = cells >= 0
        wanted_RQ = cells_of(cells.clamp(min=0))[:, :AWAY]
        found = self.found(encoded_RQD)[..., 0].float()
        found = nn.functional.binary_cross_entropy_with_logits(found[about_R], wanted_RQ[about_R])
        said_RA = (labels != -100) & reads[:, None]
        looked_RHA = (self.heard["reads"][:, :2, :, :QUERIES].float() * wanted_RQ[:, None, None]).sum(-1)
        looked = -(looked_RHA.transpose(1, 2)[said_RA] + 1e-3).log()
        return {"found": found, "read": looked.sum() / max(looked.numel(), 1)}
