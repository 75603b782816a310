"""The settings of `ressa data`."""

from __future__ import annotations

from dataclasses import dataclass

from ressa.settings import SEEDS, setting


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
