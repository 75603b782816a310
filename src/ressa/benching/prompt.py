"""The picture and the question that every model is given."""

from __future__ import annotations

from ressa.data.records import Record, read_records
from ressa.data.seeing import Noise
from ressa.errors import RessaError

BUILT_IN = Record("of noise", "What is in the picture?", ("noise",), image=Noise(size=(384, 384)))


def prompt(data: str | None, split: str) -> Record:
    """The first record of `data` with a picture; without data a question about coarse noise of 384 x 384 pixels.

    Raises:
        RessaError: data that cannot be read, or no record with a picture in it.
    """
    if data is None:
        return BUILT_IN
    records = read_records(data, split)
    found = next((record for record in records if record.image is not None), None)
    if found is None:
        raise RessaError(f"bench: no record of {data} ({split}) has a picture; name other data, or leave it out")
    return found
