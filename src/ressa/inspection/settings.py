"""The settings of `inspect --plan`."""

from __future__ import annotations

from dataclasses import dataclass

from ressa.settings import check, setting


@dataclass(frozen=True)
class Plan:
    """What is to be reckoned with."""

    samples: int = setting(128, "Records that calibrate.")
    batch_size: int | None = setting(None, "Records that run together. [8, in repair 16]")
    tokens: int | None = setting(None, "Of a record. [64, and those of its picture]")
    patches: int | None = setting(None, "Of its picture. [as the config tells, else 1024]")
    answers: int = setting(16, "Of its tokens, those to be answered.")
    steps: int = setting(1000, "Optimiser steps of repair.")
    rank: int = setting(32, "Rank of SparseLoRA.")
    memory: str | None = setting(None, "Of the GPU or the machine (24GiB): what fits, else how.")
    gflops: float | None = setting(None, "GFLOP/s of the machine in matrix products: adds times.", above=0)

    def __post_init__(self) -> None:
        check(self, "inspect")
