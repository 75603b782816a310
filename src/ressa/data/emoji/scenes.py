"""Scenes of one to nine things in a 3 x 3 grid: drawn by seed, split by content, some combinations never trained on.

A scene's split follows from what it shows (a hash of its things and places), so train, validation and test share no
scene however many are made. One pair of things in twenty and one (thing, place) in twelve appear in no scene of those
three splits; every scene of `test_unseen` has at least one such pair and one such place.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ressa.data.emoji.things import Thing, sprite, things

if TYPE_CHECKING:
    from PIL import Image

PLACES = (
    *("top left", "top middle", "top right"),
    *("middle left", "centre", "middle right"),
    *("bottom left", "bottom middle", "bottom right"),
)
SIZE = 144  # pixels a side
CELL = SIZE // 3
SPLITS = ("train", "validation", "test", "test_unseen")


@dataclass(frozen=True)
class Placed:
    """A thing in a cell (0 to 8, row by row), `size` pixels long, moved by (dx, dy) pixels and turned by `angle`°."""

    thing: Thing
    cell: int
    size: int
    dx: int
    dy: int
    angle: int


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `seed` draws its background."""

    placed: tuple[Placed, ...]  # in the order of their cells
    seed: str

    def at(self, cell: int) -> Thing | None:
        """The thing in a cell, or None."""
        return next((p.thing for p in self.placed if p.cell == cell), None)


def _hash(*words: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big")


def pair_is_unseen(a: Thing, b: Thing) -> bool:
    """Whether no training scene shows both things."""
    return _hash("pair", *sorted((a.name, b.name))) % 20 == 0


def place_is_unseen(thing: Thing, cell: int) -> bool:
    """Whether no training scene shows this thing in this cell."""
    return _hash("place", thing.name, cell) % 12 == 0


def _unseen(content: list[tuple[Thing, int]]) -> tuple[bool, bool]:
    """Whether the content has (a pair, a place) kept out of training."""
    pair = any(pair_is_unseen(a, b) for (a, _), (b, _) in itertools.combinations(content, 2))
    return pair, any(place_is_unseen(t, c) for t, c in content)


def _split(content: list[tuple[Thing, int]]) -> str:
    bucket = _hash("scene", *sorted((c, t.name) for t, c in content)) % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


def _content(rng: random.Random) -> list[tuple[Thing, int]]:
    """A few things in distinct cells; a third of the scenes lean to one kind, so that there is something to count."""
    n = rng.choices(range(1, 10), weights=(14, 12, 13, 13, 12, 10, 9, 9, 8))[0]
    pool = list(things())
    if n > 1 and rng.random() < 1 / 3:
        kind = rng.choice(pool).kind
        same = [t for t in pool if t.kind == kind]
        first = rng.sample(same, min(len(same), rng.randint(2, n)))
        chosen = first + [t for t in rng.sample(pool, n) if t not in first]
    else:
        chosen = rng.sample(pool, n)
    return sorted(zip(chosen[:n], rng.sample(range(9), n), strict=True), key=lambda tc: tc[1])


def _with_unseen(rng: random.Random, content: list[tuple[Thing, int]]) -> list[tuple[Thing, int]]:
    """Change one scene's content until it has an unseen pair and an unseen place."""
    while True:
        i, cell = rng.randrange(len(content)), rng.randrange(9)
        thing = rng.choice([t for t in things() if place_is_unseen(t, cell)])
        content = [(t, c) for t, c in content[:i] + content[i + 1 :] if c != cell and t != thing] + [(thing, cell)]
        partner = rng.choice([t for t in things() if t != thing and pair_is_unseen(t, thing)])
        free = [c for c in range(9) if c not in {c for _, c in content}]
        if free and partner not in {t for t, _ in content}:
            return sorted([*content, (partner, rng.choice(free))], key=lambda tc: tc[1])


def scene(split: str, index: int, seed: int = 0) -> Scene:
    """Scene number `index` of a split: the same arguments give the same scene."""
    for attempt in itertools.count():
        key = f"{seed}/{split}/{index}/{attempt}"
        rng = random.Random(key)
        content = _content(rng)
        if split == "test_unseen":
            content = _with_unseen(rng, content)
        elif any(_unseen(content)) or _split(content) != split:
            continue
        return Scene(tuple(_placed(rng, t, c) for t, c in content), key)
    raise AssertionError("unreachable")


def _placed(rng: random.Random, thing: Thing, cell: int) -> Placed:
    size = rng.randint(30, 46)
    slack = (CELL - size) // 2 + 2
    return Placed(thing, cell, size, rng.randint(-slack, slack), rng.randint(-slack, slack), rng.randint(-25, 25))


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of SIZE x SIZE pixels."""
    from PIL import Image

    picture = _background(random.Random(scene.seed + "/background"))
    for p in scene.placed:
        art = sprite(p.thing.char)
        scale = p.size / max(art.size)
        art = art.resize((max(1, round(art.width * scale)), max(1, round(art.height * scale))), reducing_gap=2.0)
        art = art.rotate(p.angle, Image.Resampling.BICUBIC, expand=True)
        x = (p.cell % 3) * CELL + CELL // 2 + p.dx - art.width // 2
        y = (p.cell // 3) * CELL + CELL // 2 + p.dy - art.height // 2
        picture.paste(art, (x, y), art)
    return picture


def _background(rng: random.Random) -> Image.Image:
    """A light ground: plain, fading into a second colour, striped or dotted. Light, because OpenMoji draws in black."""
    from PIL import Image, ImageDraw

    light, other = ((rng.randint(190, 255), rng.randint(190, 255), rng.randint(190, 255)) for _ in range(2))
    style = rng.choice(("plain", "fade", "stripes", "dots"))
    picture = Image.new("RGB", (SIZE, SIZE), light)
    if style == "fade":
        ramp = Image.linear_gradient("L").resize((SIZE, SIZE)).rotate(rng.choice((0, 90, 180, 270)))
        return Image.composite(Image.new("RGB", (SIZE, SIZE), other), picture, ramp)
    pen, step = ImageDraw.Draw(picture), rng.randint(9, 24)
    if style == "stripes":
        for x in range(-SIZE, SIZE, 2 * step):
            pen.line([(x, SIZE), (x + SIZE, 0)], fill=other, width=step)
    if style == "dots":
        for x, y in itertools.product(range(0, SIZE, step), repeat=2):
            pen.ellipse([x, y, x + step // 3, y + step // 3], fill=other)
    return picture
