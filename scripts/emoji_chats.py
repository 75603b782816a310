"""What the embedded models learn from: emoji scenes in one array, the names in their cells, and chats about them.

Shapes: N scenes, T tokens of a chat. Every question is drawn anew each time its scene comes up.
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
from transformers import LlavaProcessor

from ressa.data.emoji.questions import MANY, QUESTIONS, SIDES, caption
from ressa.data.emoji.scenes import SIZE, Scene, draw, scene
from ressa.data.emoji.things import things
from ressa.data.prompts import CAPTION

NAMES = [thing.name for thing in things()]
NOTHING = len(NAMES)  # the class of an empty cell
AWAY = 9  # the "cell" of a thing that the scene does not show
KIND = {many: kind for kind, many in MANY.items()}
SIDE = "(?:" + "|".join(SIDES) + ")"
MENTIONS = (
    r"Where is the (.*)\?",
    r"Is there an? (.*)\?",
    rf"What is {SIDE} the (.*)\?",
    rf"Is the (.*) {SIDE} the (.*)\?",
)


class Pointer(NamedTuple):
    """Token `token` of chat `chat` is about what stands in `cells`, a bit each (AWAY: about nothing in the picture)."""

    chat: int
    token: int
    cells: int


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
        numbers = {name: i for i, name in enumerate(NAMES)}
        self.named = torch.full((len(self.scenes), 9), NOTHING)
        for i, shown in enumerate(self.scenes):
            for p in shown.placed:
                self.named[i, p.cell] = numbers[p.thing.name]

    def pictures(self, batch: list[int]) -> torch.Tensor:
        return torch.from_numpy(self.pixels[batch]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def __call__(self, batch: list[int]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pictures(batch), "labels": self.named[batch]}


class Chats:
    """Collates scene numbers to chats of up to `turns` questions of the `kinds` (with weights) about each picture.

    Pointers go from the last token of a thing's name in a question (`mentions`), from that of a kind which is counted
    (`kinds`), and from the token before an answer that stands beside a thing (`answers`).
    """

    def __init__(self, scenes: Scenes, processor: LlavaProcessor, turns: int, kinds: dict[str, float]) -> None:
        self.scenes, self.turns, self.kinds = scenes, turns, kinds
        self.rng = random.Random(f"{turns}/{os.environ.get('RANK', 0)}")
        self.tokenizer = processor.tokenizer
        self.pad, self.end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        self.user, self.assistant, image = self.tokenizer.convert_tokens_to_ids(
            ["<|user|>", "<|assistant|>", "<image>"]
        )
        self.image = [image] * (SIZE // processor.patch_size) ** 2
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

    def __call__(self, batch: list[int]) -> dict[str, torch.Tensor]:
        chats, labels = [], []
        pointers: dict[str, list[Pointer]] = {"mentions": [], "kinds": [], "answers": []}
        for chat, index in enumerate(batch):
            shown, ids, label = self.scenes.scenes[index], [], []
            for turn, (question, answer) in enumerate(self.asked(shown)):
                prompt = [self.user, *(self.image if turn == 0 else []), *self.tokens(question), self.assistant]
                reply = [*self.tokens(answer), self.end]
                start = len(ids) + len(prompt) - 1 - len(self.tokens(question))
                for what, offset, cells in self.pointed(shown, question, answer):
                    pointers[what].append(Pointer(chat, start + offset, cells))
                ids += prompt + reply
                label += [-100] * len(prompt) + reply
            chats.append(ids)
            labels.append(label)
        length = -(-max(map(len, chats)) // 32) * 32  # few shapes: each new one costs the CPU's kernels time
        ids_NT = torch.tensor([ids + [self.pad] * (length - len(ids)) for ids in chats])
        return {
            "input_ids": ids_NT,
            "attention_mask": (ids_NT != self.pad).long(),
            "labels": torch.tensor([label + [-100] * (length - len(label)) for label in labels]),
            "pixel_values": self.scenes.pictures(batch),
        } | {what: torch.tensor(rows, dtype=torch.long).view(-1, 3) for what, rows in pointers.items()}

    def pointed(self, shown: Scene, question: str, answer: str) -> Iterator[tuple[str, int, int]]:
        """The pointers of one turn: what they are, the token (counted from the question's first), the cells."""
        bits = {p.thing.name: 1 << p.cell for p in shown.placed}
        if (counted := re.fullmatch(r"How many (.*) are there\?", question)) and counted[1] in KIND:
            cells = sum(1 << p.cell for p in shown.placed if p.thing.kind == KIND[counted[1]])
            yield "kinds", self.last_token(question, counted.end(1)), cells or 1 << AWAY
        if re.match(f"What is {SIDE}", question):
            yield "answers", len(self.tokens(question)), bits[answer]
        for match in filter(None, (re.fullmatch(pattern, question) for pattern in MENTIONS)):
            for group in range(1, match.re.groups + 1):
                yield "mentions", self.last_token(question, match.end(group)), bits.get(match[group], 1 << AWAY)
            return

    def last_token(self, question: str, end: int) -> int:
        return len(self.tokens(question[:end])) - 1
