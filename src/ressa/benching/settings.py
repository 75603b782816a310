"""The settings of `bench`."""

from __future__ import annotations

from dataclasses import dataclass

from ressa.settings import check, setting


@dataclass(frozen=True)
class Bench:
    """What is measured of each model, and how often."""

    tokens: int = setting(64, "Tokens that follow the prompt, in every generation that is timed.", least=2)
    batch_size: int = setting(8, "Decode is measured at batch 1 and at this one; 1 leaves the second out.")
    repetitions: int = setting(3, "How often each model is measured, in turns with the others.")
    split: str = setting("test", "Of the data: the first record with a picture is the prompt.")

    def __post_init__(self) -> None:
        check(self, "bench")
