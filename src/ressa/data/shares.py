"""Several splits of a folder and the share that each has of what is drawn."""

from __future__ import annotations

from ressa.errors import RessaError


def shares_of(split: str) -> dict[str, float]:
    """{split: its share of the whole} of names with + between them; one without a share has 1.

    >>> shares_of("train:3+train_captions")
    {'train': 0.75, 'train_captions': 0.25}
    """
    shares = dict[str, float]()
    for name, _, share in (part.partition(":") for part in split.split("+")):
        try:
            shares[name] = float(share or 1)
        except ValueError:
            shares[name] = 0
        if not 0 < shares[name] < float("inf"):
            raise RessaError(f"split {split}: the share of {name} must be a number above 0, as in train:3+other:1")
    return {name: share / sum(shares.values()) for name, share in shares.items()}
