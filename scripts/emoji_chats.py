"""What the embedded models learn from: emoji scenes in one array, the names in their cells, questions and chats.

Shapes: N scenes, R questions, T tokens of a chat. Every question is drawn anew each time its scene comes up.
"""

from __future__ import annotations

import os
import pickle
import random
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from ressa.data.emoji.questions import MANY, QUESTIONS, SIDES, caption
from ressa.data.emoji.scenes import SIZE, Scene, draw, scene
from ressa.data.emoji.things import KINDS, things
from ressa.families import CAPTION

NAMES = [thing.name for thing in things()]
NOTHING = len(NAMES)  # the class of an empty cell
AWAY = 9  # the "cell" of a thing that the scene does not show
KIND = {many: kind for kind, many in MANY.items()}
NUMBER = {name: i for i, name in enumerate(NAMES)} | {many: list(KINDS).index(kind) for many, kind in KIND.items()}
SIDE = "(?:" + "|".join(SIDES) + ")"
MENTIONS = (
    r"Where is the (.*)\?",
    r"Is there an? (.*)\?",
    rf"What is {SIDE} the (.*)\?",
    rf"Is the (.*) {SIDE} the (.*)\?",
)


class Pointer(NamedTuple):
    """Token `token` of chat `chat` is about what stands in `cells`, a bit each (AWAY: about nothing in the picture).

    `number` is that of the thing, or of the kind, in NAMES or KINDS.
    """

    chat: int
    token: int
    cells: int
    number: int


def _drawn(index: int) -> tuple[Scene, bytes]:
    shown = scene("train", index)
    return shown, np.asarray(draw(shown)).tobytes()


def make_scenes(work: Path, n: int) -> None:
    """Draws `n` scenes to WORK/pixels.npy and WORK/scenes.pkl, unless they are there."""
    if (work / "scenes.pkl").exists():
        return
    pixels = np.lib.format.open_memmap(work / "pixels.npy", "w+", np.uint8, (n, SIZE, SIZE, 3))
    scenes = []
    with ProcessPoolExecutor(2) as pool:
        for i, (shown, picture) in enumerate(pool.map(_drawn, range(n), chunksize=256)):
            pixels[i] = np.frombuffer(picture, np.uint8).reshape(SIZE, SIZE, 3)
            scenes.append(shown)
    (work / "scenes.pkl").write_bytes(pickle.dumps(scenes))


class Scenes:
    """The drawn scenes: collates their numbers to pictures and the names in their nine cells."""

    def __init__(self, work: Path) -> None:
        self.pixels = np.load(work / "pixels.npy", mmap_mode="r")
        self.scenes: list[Scene] = pickle.loads((work / "scenes.pkl").read_bytes())
        self.named = torch.full((len(self.scenes), 9), NOTHING)
        for i, shown in enumerate(self.scenes):
            for p in shown.placed:
                self.named[i, p.cell] = NUMBER[p.thing.name]

    def pictures(self, batch: list[int]) -> torch.Tensor:
        return torch.from_numpy(self.pixels[batch]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def __call__(self, batch: list[int]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pictures(batch), "labels": self.named[batch]}


class Asker:
    """Draws questions of the `kinds` (with weights), tokenises, and says which token is about what (Pointer).

    Pointers go from the last token of a thing's name in a question (`mentions`), from that of a kind which is counted
    (`kinds`), and from the token before an answer that stands beside a thing (`answers`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, turns: int, kinds: dict[str, float]) -> None:
        self.tokenizer, self.turns, self.kinds = tokenizer, turns, kinds
        self.rng = random.Random(f"{turns}/{os.environ.get('RANK', 0)}")
        self.known: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.known[text]

    def asked(self, shown: Scene) -> list[tuple[str, str]]:
        pairs: dict[str, str] = {}
        for kind in self.rng.choices(list(self.kinds), list(self.kinds.values()), k=3 * self.turns):
            if kind == "caption":
                pair = (CAPTION, caption(shown)) if len(shown.placed) <= 3 else None
            else:
                pair = QUESTIONS[kind](shown, self.rng)
            if pair and len(pairs) < self.turns:
                pairs.setdefault(*pair)
        return list(pairs.items()) or [("What is in the centre?", getattr(shown.at(4), "name", "nothing"))]

    def pointed(self, shown: Scene, question: str, answer: str) -> Iterator[tuple[str, int, int, int]]:
        """The pointers of one turn: what they are, the token (counted from the question's first), cells and number."""
        bits = {p.thing.name: 1 << p.cell for p in shown.placed}
        if (counted := re.fullmatch(r"How many (.*) are there\?", question)) and counted[1] in KIND:
            cells = sum(1 << p.cell for p in shown.placed if p.thing.kind == KIND[counted[1]])
            yield "kinds", self.last_token(question, counted.end(1)), cells or 1 << AWAY, NUMBER[counted[1]]
        if re.match(f"What is {SIDE}", question):
            yield "answers", len(self.tokens(question)), bits[answer], NUMBER[answer]
        for match in filter(None, (re.fullmatch(pattern, question) for pattern in MENTIONS)):
            for group in range(1, match.re.groups + 1):
                last, name = self.last_token(question, match.end(group)), match[group]
                yield "mentions", last, bits.get(name, 1 << AWAY), NUMBER[name]
            return

    def last_token(self, question: str, end: int) -> int:
        return len(self.tokens(question[:end])) - 1


class Chats:
    """Collates scene numbers to chats of up to `turns` questions about each picture, with their pointers."""

    def __init__(self, scenes: Scenes, processor: LlavaProcessor, turns: int, kinds: dict[str, float]) -> None:
        self.scenes, self.ask = scenes, Asker(processor.tokenizer, turns, kinds)
        self.pad, self.end = processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id
        self.user, self.assistant, image = processor.tokenizer.convert_tokens_to_ids(
            ["<|user|>", "<|assistant|>", "<image>"]
        )
        self.image = [image] * (SIZE // processor.patch_size) ** 2

    def __call__(self, batch: list[int]) -> dict[str, torch.Tensor]:
        chats, labels, tokens = [], [], self.ask.tokens
        pointers: dict[str, list[Pointer]] = {"mentions": [], "kinds": [], "answers": []}
        for chat, index in enumerate(batch):
            shown, ids, label = self.scenes.scenes[index], [], []
            for turn, (question, answer) in enumerate(self.ask.asked(shown)):
                prompt = [self.user, *(self.image if turn == 0 else []), *tokens(question), self.assistant]
                reply = [*tokens(answer), self.end]
                start = len(ids) + len(prompt) - 1 - len(tokens(question))
                for what, offset, cells, number in self.ask.pointed(shown, question, answer):
                    pointers[what].append(Pointer(chat, start + offset, cells, number))
                ids += prompt + reply
                label += [-100] * len(prompt) + reply
            chats.append(ids)
            labels.append(label)
        length = -(-max(map(len, chats)) // 32) * 32  # few shapes: each new one costs the CPU's kernels time
        ids_NT = padded(chats, length, self.pad)
        return {
            "input_ids": ids_NT,
            "attention_mask": (ids_NT != self.pad).long(),
            "labels": padded(labels, length, -100),
            "pixel_values": self.scenes.pictures(batch),
        } | {what: table(rows) for what, rows in pointers.items()}


def padded(rows: list[list[int]], length: int, fill: int) -> torch.Tensor:
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


def table(rows: list[Pointer]) -> torch.Tensor:
    """Pointers as rows of numbers, (M, 4)."""
    return torch.tensor(rows, dtype=torch.long).view(-1, len(Pointer._fields))
