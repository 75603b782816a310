"""Emoji scenes: real art, splits that share nothing, and answers that hold when another program thinks about them."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from ressa.data.emoji import SPLITS, write
from ressa.data.emoji.questions import QUESTIONS, ask, caption
from ressa.data.emoji.scenes import SIZE, Scene, draw, pair_is_unseen, place_is_unseen, scene
from ressa.data.emoji.things import KINDS, sprite, things
from ressa.data.records import read_records
from ressa.errors import RessaError

FEW = {"train": 6, "validation": 2, "test": 3, "questions": 3}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


@functools.cache
def scenes(split: str, n: int, seed: int = 0) -> list[Scene]:
    return [scene(split, i, seed) for i in range(n)]


def content(shown: Scene) -> frozenset[tuple[str, int]]:
    return frozenset((p.thing.name, p.cell) for p in shown.placed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("emoji") / "data", **FEW)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- things ----------------------------------------------------------------------------------------------------------


def test_there_are_hundreds_of_things_of_many_kinds_with_names_of_their_own():
    assert len(things()) >= 150
    assert len({thing.kind for thing in things()}) >= 8
    assert len({thing.name for thing in things()}) == len(things())
    assert min(Counter(thing.kind for thing in things()).values()) >= 9  # or "how many" would have nothing to count
    assert all(re.fullmatch(r"[\w' .!&,()-]+", thing.name) and thing.name == thing.name.lower() for thing in things())


def test_every_thing_has_art_in_colour_that_no_other_thing_has():
    seen: dict[tuple[tuple[int, int], bytes], str] = {}
    colourful = 0
    for thing in things():
        art = sprite(thing.char)
        assert art.mode == "RGBA"
        assert max(art.size) == 96, thing
        alpha = art.getchannel("A")
        ink = alpha.getbbox()
        assert ink[2] - ink[0] > art.width - 3, thing
        assert ink[3] - ink[1] > art.height - 3, thing
        assert sum(alpha.histogram()[128:]) > 300, f"{thing} is hardly there"
        other = seen.setdefault((art.size, art.tobytes()), thing.name)
        assert other == thing.name, f"{thing.name} looks like {other}"
        red, green, blue, _ = art.split()
        colourful += not (red.tobytes() == green.tobytes() == blue.tobytes())
    assert colourful > 0.95 * len(things())  # in black and white, a font without colour would pass


# ---- scenes ----------------------------------------------------------------------------------------------------------


def test_scenes_vary_in_number_size_place_rotation_and_ground():
    shown = scenes("train", 200)
    assert {len(s.placed) for s in shown} == set(range(1, 10))
    placed = [p for s in shown for p in s.placed]
    assert {p.cell for p in placed} == set(range(9))
    assert all(len({p.cell for p in s.placed}) == len({p.thing for p in s.placed}) == len(s.placed) for s in shown)
    assert len({p.size for p in placed}) > 10
    assert len({p.angle for p in placed}) > 30
    assert len({(p.dx, p.dy) for p in placed}) > 50
    corners = {draw(s).getpixel((0, 0)) for s in shown[:20]}
    assert len(corners) > 10


def test_things_stay_in_their_cells_where_the_eye_looks_for_them():
    for shown in scenes("train", 200):
        for p in shown.placed:
            assert abs(p.dx) <= SIZE // 12
            assert abs(p.dy) <= SIZE // 12


def test_a_drawn_thing_changes_its_cell_and_leaves_far_ones_alone():
    shown = next(s for s in scenes("train", 200) if len(s.placed) == 1)
    empty, full = draw(Scene((), shown.seed)), draw(shown)
    assert full.size == (SIZE, SIZE)
    cell, third = shown.placed[0].cell, SIZE // 3
    for other in range(9):
        y, x = divmod(other, 3)
        box = (x * third, y * third, (x + 1) * third, (y + 1) * third)
        same = empty.crop(box).tobytes() == full.crop(box).tobytes()
        near = abs(y - cell // 3) <= 1 and abs(x - cell % 3) <= 1
        assert same if not near else (other != cell or not same)


def test_train_validation_and_test_share_no_scene():
    sets = {split: {content(s) for s in scenes(split, 150)} for split in SPLITS}
    for one, two in itertools.combinations(SPLITS, 2):
        assert not sets[one] & sets[two], (one, two)
    # another seed draws other scenes, yet never from what is kept for the other splits
    other = {content(s) for s in scenes("train", 150, seed=1)}
    assert len(other & sets["train"]) < 15
    assert not other & (sets["validation"] | sets["test"])


def test_single_things_are_split_too():
    """They are the scenes that could meet by chance: 626 things in nine places."""
    singles = {split: [content(s) for s in scenes(split, 150) if len(s.placed) == 1] for split in SPLITS[:3]}
    assert all(len(found) > 10 for found in singles.values())
    assert not set(singles["train"]) & (set(singles["validation"]) | set(singles["test"]))


def test_no_training_scene_has_an_unseen_pair_or_place_and_every_unseen_scene_has_both():
    def unseen(shown: Scene) -> tuple[bool, bool]:
        pairs = itertools.combinations([p.thing for p in shown.placed], 2)
        return any(pair_is_unseen(a, b) for a, b in pairs), any(place_is_unseen(p.thing, p.cell) for p in shown.placed)

    for split in SPLITS[:3]:
        assert not any(any(unseen(s)) for s in scenes(split, 150)), split
    assert not any(any(unseen(s)) for s in scenes("train", 300))
    assert all(unseen(s) == (True, True) for s in scenes("test_unseen", 300))


def test_an_unseen_pair_is_unseen_in_either_order_and_rare():
    some = things()[::9]
    pairs = list(itertools.combinations(some, 2))
    assert all(pair_is_unseen(a, b) == pair_is_unseen(b, a) for a, b in pairs)
    assert 0.03 < sum(pair_is_unseen(a, b) for a, b in pairs) / len(pairs) < 0.07
    places = [place_is_unseen(thing, cell) for thing in things() for cell in range(9)]
    assert 0.06 < sum(places) / len(places) < 0.11


# ---- questions -------------------------------------------------------------------------------------------------------


def place_names() -> dict[str, int]:
    names = {f"{row} {column}": 3 * y + x for y, row in enumerate(ROWS) for x, column in enumerate(COLUMNS)}
    names["centre"] = names.pop("middle middle")
    return names


PLACE = place_names()


def grid(shown: Scene) -> dict[int, tuple[str, str]]:
    return {p.cell: (p.thing.name, p.thing.kind) for p in shown.placed}


def singular(noun: str) -> str:
    """Back from how many "birds", "foods" or "pieces of clothing"."""
    if noun.startswith("pieces "):
        return "piece " + noun.removeprefix("pieces ")
    return noun.removesuffix("s")


def right_answer(shown: Scene, question: str) -> str:
    """The answer, found from the words of the question and the grid alone."""
    cells = grid(shown)
    at = {name: cell for cell, (name, _) in cells.items()}
    if question == "What is this?":
        assert len(cells) == 1
        return next(iter(at))
    if asked := re.fullmatch(r"What is (left of|right of|above|below) the (.+)\?", question):
        y, x = divmod(at[asked[2]], 3)
        y, x = {"left of": (y, x - 1), "right of": (y, x + 1), "above": (y - 1, x), "below": (y + 1, x)}[asked[1]]
        assert 0 <= y < 3
        assert 0 <= x < 3
        return cells[3 * y + x][0]
    if asked := re.fullmatch(r"What is in the (.+)\?", question):
        return cells.get(PLACE[asked[1]], ("nothing", ""))[0]
    if asked := re.fullmatch(r"What kind of thing is in the (.+)\?", question):
        return cells[PLACE[asked[1]]][1]
    if asked := re.fullmatch(r"Where is the (.+)\?", question):
        return next(place for place, cell in PLACE.items() if cell == at[asked[1]])
    if question == "How many things are there?":
        return str(len(cells))
    if asked := re.fullmatch(r"How many things are in the (top|middle|bottom) row\?", question):
        return str(sum(ROWS[cell // 3] == asked[1] for cell in cells))
    if asked := re.fullmatch(r"How many (.+) are there\?", question):
        assert singular(asked[1]) in KINDS
        return str(sum(kind == singular(asked[1]) for _, kind in cells.values()))
    if asked := re.fullmatch(r"Is there an? (.+)\?", question):
        assert asked[1] in {thing.name for thing in things()}
        return "yes" if asked[1] in at else "no"
    asked = re.fullmatch(r"Is the (.+) (left of|right of|above|below) the (.+)\?", question)
    assert asked, f"nobody taught this test to answer {question!r}"
    (y1, x1), (y2, x2) = divmod(at[asked[1]], 3), divmod(at[asked[3]], 3)
    holds = {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}[asked[2]]
    opposite = {"left of": x1 > x2, "right of": x1 < x2, "above": y1 > y2, "below": y1 < y2}[asked[2]]
    assert holds or opposite, "neither is left of the other: that has no certain answer"
    return "yes" if holds else "no"


@pytest.mark.parametrize("split", ["train", "test_unseen"])
def test_every_answer_is_right_and_every_kind_of_question_is_asked(split):
    kinds = Counter()
    for shown in scenes(split, 300):
        asked = ask(shown, 12)
        assert len({record["question"] for record in asked}) == len(asked)
        for record in asked:
            assert right_answer(shown, record["question"]) == record["answer"], (record, grid(shown))
            kinds[record["kind"]] += 1
    assert set(kinds) == set(QUESTIONS) - ({"name"} if split == "test_unseen" else set())
    assert len(QUESTIONS) >= 6


@pytest.mark.parametrize("kind", ["exists", "relation"])
def test_yes_is_right_as_often_as_no(kind):
    asked = [r for s in scenes("train", 300) for r in ask(s, 12) if r["kind"] == kind]
    assert len(asked) > 150
    assert 0.4 < sum(r["answer"] == "yes" for r in asked) / len(asked) < 0.6


def test_questions_about_scenes_of_unseen_places_go_to_those_places():
    shown = scenes("test_unseen", 200)
    aimed = total = 0
    for s in shown:
        places = {cell for cell in grid(s) if place_is_unseen(s.at(cell), cell)}
        for record in ask(s, 12):
            if record["kind"] == "where":
                total += 1
                aimed += PLACE[record["answer"]] in places
    assert aimed == total > 50


def test_a_caption_tells_every_thing_and_its_place():
    for shown in scenes("train", 50):
        told = set(caption(shown).split(", "))
        wanted = {
            f"{name} in the {place}"
            for place, cell in PLACE.items()
            for name, _ in [grid(shown).get(cell, "  ")]
            if cell in grid(shown)
        }
        assert {re.sub(r"^an? ", "", piece) for piece in told} == wanted


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(folder, tmp_path):
    again, other = write(tmp_path / "again", **FEW), write(tmp_path / "other", **FEW, seed=1)
    assert digests(again) == digests(folder)
    assert digests(other)["train.jsonl"] != digests(folder)["train.jsonl"]


def test_more_scenes_do_not_change_the_first_ones(folder, tmp_path):
    more = digests(write(tmp_path / "more", **(FEW | {"train": 8})))
    first = {name: value for name, value in digests(folder).items() if name.endswith(".png")}
    assert first.items() <= more.items()


def test_the_folder_is_read_as_any_users_folder(folder):
    for split, n in zip(SPLITS, (6, 2, 3, 3), strict=True):
        records, captions = read_records(folder, split), read_records(folder, f"{split}_captions")
        assert len(captions) == n
        assert n <= len(records) <= 3 * n
        assert {record.kind for record in records} <= set(QUESTIONS)
        assert all(record.open_image().size == (SIZE, SIZE) for record in captions)
        assert all(record.caption == caption(scene(split, i)) for i, record in enumerate(captions))
    assert "CC BY-SA 4.0" in (folder / "README.txt").read_text(encoding="utf-8")


def test_pictures_show_the_scenes_of_their_records(folder):
    line = json.loads((folder / "test_captions.jsonl").read_text(encoding="utf-8").splitlines()[1])
    with Image.open(folder / line["image"]) as picture:
        assert picture.tobytes() == draw(scene("test", 1)).tobytes()


def test_writing_tells_how_far_it_is(tmp_path):
    told: list[tuple[int, int, str]] = []
    write(tmp_path / "data", **FEW, progress=lambda *args: told.append(args))
    assert [done for done, _, _ in told] == list(range(1, 15))
    assert {total for _, total, _ in told} == {14}


@pytest.mark.parametrize("there", ["full", "file"])
def test_what_is_there_is_never_overwritten(tmp_path, there):
    out = tmp_path / "data"
    if there == "full":
        out.mkdir()
    kept = out / "mine.txt" if there == "full" else out
    kept.write_text("mine")
    with pytest.raises(RessaError, match="not empty" if there == "full" else "is a file"):
        write(out, **FEW)
    assert kept.read_text() == "mine"
    assert list(tmp_path.rglob("*")) == ([out, kept] if there == "full" else [out])


def test_an_empty_folder_is_filled_even_where_one_stands_in_it(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    write(".", **FEW)
    assert len(read_records(tmp_path / "data", "test_captions")) == 3


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_writing_leaves_nothing(tmp_path, monkeypatch, error):
    def broken(shown, n):
        if shown == scene("validation", 1):
            raise error
        return ask(shown, n)

    monkeypatch.setitem(write.__globals__, "ask", broken)
    with pytest.raises(RessaError if isinstance(error, OSError) else type(error)):
        write(tmp_path / "new" / "data", **FEW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "validation", "test", "questions"])
def test_no_scenes_are_refused(tmp_path, name):
    with pytest.raises(RessaError, match="at least 1"):
        write(tmp_path / "data", **(FEW | {name: 0}))
    assert not list(tmp_path.iterdir())
