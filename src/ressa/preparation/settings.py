"""The settings of `ressa data`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields

from ressa.errors import RessaError, shown
from ressa.settings import SEEDS, check, setting

Progress = Callable[[int, "int | None", str], None]  # (done, total, what)


@dataclass(frozen=True)
class Prepare:
    """How an official download becomes a data folder."""

    form: str = setting(
        "plain",
        "plain: captions, questions and answers as they are; prefix: a caption cut in two, of which the second part is "
        "learnt; instruct: chat messages, with an instruction of InstructBLIP for captions.",
        among=("plain", "prefix", "instruct"),
    )
    split: str = setting("train", "Where records go whose source has no splits of its own.")
    validation: float = setting(0.0, "The share of their pictures that goes to validation instead.", least=0, most=1)
    test: float = setting(0.0, "The same for test.", least=0, most=1)
    limit: int | None = setting(None, "At most so many pictures of each split, drawn by the seed. [all]")
    per_picture: int | None = setting(None, "At most so many records about a picture, drawn by the seed. [all]")
    seed: int = setting(0, "Draws pictures, records, prefixes and instructions.", least=0, most=SEEDS)
    max_side: int | None = setting(None, "Pictures with a longer side are scaled down to it.")
    max_failed: float = setting(
        0.5,
        "Stop when a larger share of the pictures tried, a hundred or all, cannot be used.",
        least=0,
        most=1,
    )
    shard_size: int | None = setting(
        None, "Write Parquet shards of so many records instead of .jsonl and images/, for loading by many processes."
    )
    columns: str | None = setting(
        None, "For dataset: its columns for image, caption, question and answer: image=jpg,caption=txt."
    )
    source_split: str = setting("train", "For dataset: which of its splits is read.")
    workers: int = setting(16, "Pictures that are fetched and decoded at the same time.")
    timeout: float = setting(20.0, "Seconds that a download may take.", above=0)
    retries: int = setting(2, "Further tries of a download that failed for a reason that may pass.", least=0)

    def __post_init__(self) -> None:
        check(self, "data")
        if not re.fullmatch(r"[\w-]+", self.split):
            raise RessaError(f"data: split {shown(self.split)} must be a plain name: it becomes the name of a file")
        if self.validation + self.test >= 1:
            shares = f"validation {self.validation:g} and test {self.test:g}"
            raise RessaError(f"data: {shares} leave nothing for {self.split}")


ANY_TIME = ("max_failed", "workers", "timeout", "retries")  # what a run may take up an unfinished one with
DECIDING = tuple(f.name for f in fields(Prepare) if f.name not in ANY_TIME)  # what decides the bytes of the output
