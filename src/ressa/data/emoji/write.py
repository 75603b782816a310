"""Write emoji scenes as an ordinary dataset: JSONL records and PNG pictures in one folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ressa.data.emoji.questions import ask, caption
from ressa.data.emoji.scenes import SPLITS, draw, scene
from ressa.errors import RessaError

CREDIT = """Emoji scenes, made by ressa (`ressa data emoji`).
Art: OpenMoji, the open-source emoji and icon project (https://openmoji.org), licence CC BY-SA 4.0; so are these pictures.
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
        RessaError: `out` exists and is not empty, or a number is not positive.
    """
    out = Path(out)
    sizes = dict(zip(SPLITS, (train, validation, test, test), strict=True))
    if min(*sizes.values(), questions) < 1:
        raise RessaError("ressa data emoji: train, validation, test and questions must each be at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RessaError(f"{out}: exists and is not empty; name a new folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "images").mkdir(parents=True)
    except OSError as error:
        raise RessaError(f"{out}: cannot be written ({error.strerror})") from None
    done = 0
    for split, n in sizes.items():
        _write_split(partial, split, n, questions, seed)
        done += n
        if progress:
            progress(done, sum(sizes.values()), f"drawing {split}")
    (partial / "README.txt").write_text(CREDIT)
    if out.exists():
        out.rmdir()
    os.replace(partial, out)
    return out


def _write_split(folder: Path, split: str, n: int, questions: int, seed: int) -> None:
    with (folder / f"{split}.jsonl").open("w") as asked, (folder / f"{split}_captions.jsonl").open("w") as told:
        for i in range(n):
            shown = scene(split, i, seed)
            image = f"images/{split}_{i:06d}.png"
            draw(shown).save(folder / image)
            for record in ask(shown, questions):
                asked.write(json.dumps({"image": image, **record}, ensure_ascii=False) + "\n")
            told.write(json.dumps({"image": image, "caption": caption(shown)}, ensure_ascii=False) + "\n")
