"""What can be asked of a scene: ten kinds of question, each with one certain answer, and a caption."""

from __future__ import annotations

import random
from collections.abc import Callable

from ressa.data.emoji.scenes import PLACES, Placed, Scene, place_is_unseen
from ressa.data.emoji.things import KINDS, Thing, things

Asked = tuple[str, str] | None  # (question, answer), or None where the scene does not allow the question
MANY = {kind: "faces" if kind == "face" else kind + "s" for kind in KINDS} | {
    "fruit": "fruits",
    "food": "foods",
    "piece of clothing": "pieces of clothing",
}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


def _a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _focus(scene: Scene, rng: random.Random) -> Placed:
    """A thing to ask about: one in a place never trained on, where the scene has it."""
    return rng.choice([p for p in scene.placed if place_is_unseen(p.thing, p.cell)] or scene.placed)


def _absent(scene: Scene, rng: random.Random) -> Thing:
    """A thing the scene does not show; half the time of a kind it does show, so that the kind alone is no answer."""
    shown = {p.thing for p in scene.placed}
    kind = rng.choice(scene.placed).thing.kind
    near = [t for t in things() if t.kind == kind and t not in shown]
    return rng.choice(near if near and rng.random() < 0.5 else [t for t in things() if t not in shown])


def name(scene: Scene, rng: random.Random) -> Asked:
    """What is this?"""
    return ("What is this?", scene.placed[0].thing.name) if len(scene.placed) == 1 else None


def place(scene: Scene, rng: random.Random) -> Asked:
    """What is in the top left?"""
    empty = [c for c in range(9) if scene.at(c) is None]
    if empty and rng.random() < 0.08:
        return f"What is in the {PLACES[rng.choice(empty)]}?", "nothing"
    p = _focus(scene, rng)
    return f"What is in the {PLACES[p.cell]}?", p.thing.name


def where(scene: Scene, rng: random.Random) -> Asked:
    """Where is the owl?"""
    p = _focus(scene, rng)
    return f"Where is the {p.thing.name}?", PLACES[p.cell]


def count(scene: Scene, rng: random.Random) -> Asked:
    """How many things are there?"""
    row = rng.choice((None, None, "top", "middle", "bottom"))
    if row is None:
        return "How many things are there?", str(len(scene.placed))
    cells = range(3 * ("top", "middle", "bottom").index(row), 3 * ("top", "middle", "bottom").index(row) + 3)
    return f"How many things are in the {row} row?", str(sum(p.cell in cells for p in scene.placed))


def count_kind(scene: Scene, rng: random.Random) -> Asked:
    """How many birds are there?"""
    kinds = [p.thing.kind for p in scene.placed]
    kind = rng.choice(list(KINDS)) if rng.random() < 0.15 else rng.choice(kinds)
    return f"How many {MANY[kind]} are there?", str(kinds.count(kind))


def exists(scene: Scene, rng: random.Random) -> Asked:
    """Is there an owl?"""
    if rng.random() < 0.5:
        return f"Is there {_a(_focus(scene, rng).thing.name)}?", "yes"
    return f"Is there {_a(_absent(scene, rng).name)}?", "no"


def _neighbour(scene: Scene, rng: random.Random, words: tuple[str, str]) -> Asked:
    options = []
    for p in scene.placed:
        for word in words:
            dy, dx = SIDES[word]
            y, x = p.cell // 3 + dy, p.cell % 3 + dx
            other = scene.at(3 * y + x) if 0 <= y < 3 and 0 <= x < 3 else None
            if other:
                options.append((f"What is {word} the {p.thing.name}?", other.name))
    return rng.choice(options) if options else None


def beside(scene: Scene, rng: random.Random) -> Asked:
    """What is left of the owl?"""
    return _neighbour(scene, rng, ("left of", "right of"))


def above(scene: Scene, rng: random.Random) -> Asked:
    """What is above the owl?"""
    return _neighbour(scene, rng, ("above", "below"))


def kind(scene: Scene, rng: random.Random) -> Asked:
    """What kind of thing is in the centre?"""
    p = _focus(scene, rng)
    return f"What kind of thing is in the {PLACES[p.cell]}?", p.thing.kind


def relation(scene: Scene, rng: random.Random) -> Asked:
    """Is the owl above the car?"""
    word = rng.choice(list(SIDES))
    dy, dx = SIDES[word]
    pairs = [
        (a, b, (a.cell // 3 - b.cell // 3) * dy + (a.cell % 3 - b.cell % 3) * dx)
        for a in scene.placed
        for b in scene.placed
    ]
    wanted = rng.random() < 0.5
    pairs = [(a, b, s) for a, b, s in pairs if s and (s > 0) == wanted]
    if not pairs:
        return None
    a, b, _ = rng.choice(pairs)
    return f"Is the {a.thing.name} {word} the {b.thing.name}?", "yes" if wanted else "no"


QUESTIONS: dict[str, Callable[[Scene, random.Random], Asked]] = {
    "name": name,
    "place": place,
    "where": where,
    "count": count,
    "count kind": count_kind,
    "exists": exists,
    "beside": beside,
    "above": above,
    "kind": kind,
    "relation": relation,
}
WEIGHTS = {"name": 6, "place": 2, "beside": 2, "above": 2}  # names are the answers that need the picture most


def ask(scene: Scene, n: int) -> list[dict[str, str]]:
    """Up to `n` different questions of a scene as {question, answer, kind}, drawn by the scene's own seed."""
    rng = random.Random(scene.seed + "/questions")
    kinds = list(QUESTIONS)
    asked: dict[str, dict[str, str]] = {}
    for _ in range(4 * n):
        chosen = rng.choices(kinds, weights=[WEIGHTS.get(k, 1) for k in kinds])[0]
        pair = QUESTIONS[chosen](scene, rng)
        if pair and len(asked) < n:
            asked.setdefault(pair[0], {"question": pair[0], "answer": pair[1], "kind": chosen})
    return list(asked.values())


def caption(scene: Scene) -> str:
    """The whole scene in words, place by place: "an owl in the top left, a car in the centre"."""
    return ", ".join(f"{_a(p.thing.name)} in the {PLACES[p.cell]}" for p in scene.placed)
