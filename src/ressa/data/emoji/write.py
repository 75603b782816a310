"""Write emoji scenes as an ordinary dataset: JSONL records and PNG pictures in one folder."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ressa.data.emoji.questions import ask, caption
from ressa.data.emoji.scenes import SPLITS, draw, scene
from ressa.errors import RessaError

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
    path = Path(out).absolute()  # so that "." has a name and a parent, too
    sizes = dict(zip(SPLITS, (train, validation, test, test), strict=True))
    if min(*sizes.values(), questions) < 1:
        raise RessaError("ressa data emoji: train, validation, test and questions must each be at least 1")
    if os.path.lexists(path) and not path.is_dir():
        raise RessaError(f"{out}: the output is a file; name a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise RessaError(f"{out}: the output folder is not empty; name a new one or empty it")
    with _partial(path) as folder:
        (folder / "images").mkdir()
        done = 0
        for split, n in sizes.items():
            for i in _write_split(folder, split, n, questions, seed):
                if progress:
                    progress(done + i, sum(sizes.values()), f"drawing {split}")
            done += n
        (folder / "README.txt").write_text(CREDIT, encoding="utf-8")
        os.replace(folder, path)
    return Path(out)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, gone afterwards whatever happens, with the parents that were made for it."""
    folder = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    made = [above for above in path.parents if not above.exists()]
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise RessaError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for above in made:  # the nearest first; those that now hold `path` stay
            if above.is_dir() and not any(above.iterdir()):
                above.rmdir()


def _write_split(folder: Path, split: str, n: int, questions: int, seed: int) -> Iterator[int]:
    """Writes scene after scene; yields how many there are so far."""
    with (
        (folder / f"{split}.jsonl").open("w", encoding="utf-8") as asked,
        (folder / f"{split}_captions.jsonl").open("w", encoding="utf-8") as told,
    ):
        for i in range(n):
            shown = scene(split, i, seed)
            image = f"images/{split}_{i:06d}.png"
            draw(shown).save(folder / image)
            for record in ask(shown, questions):
                asked.write(json.dumps({"image": image, **record}, ensure_ascii=False) + "\n")
            told.write(json.dumps({"image": image, "caption": caption(shown)}, ensure_ascii=False) + "\n")
            yield i + 1
