"""What a published data set holds, one picture after the other: where the picture is, and what is written about it.

`ressa.preparation` makes data folders of items, `ressa.tasks` samples of a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

# ("file", name, other name...) below the folders or in the zips of --images, ("url", address),
# ("tar", path, offset, size), or ("row", number) of a table.
Place: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Annotation:
    """A caption, or a question with its answers."""

    text: str  # the caption, or the answer
    question: str | None = None
    id: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)  # {"structural type": "query"}; the first is the record's
    others: tuple[str, ...] = ()  # what other people answered

    @property
    def kind(self) -> str | None:
        return next(iter(self.kinds.values()), None)


@dataclass(frozen=True)
class Item:
    """A picture and its annotations; `picture` is its name in the source, the same wherever it comes again."""

    picture: str
    place: Place
    annotations: tuple[Annotation, ...]
    where: str
    split: str | None = None  # the publisher's, if there is one


@dataclass(frozen=True)
class Skip:
    """A record of the source that is sound but of no use here."""

    reason: str


@dataclass(frozen=True)
class Format:
    """A published format that `ressa data NAME` reads.

    title: what it is and which files, for the command line.
    items: reads a file or folder; None for a table, which is not read by its path.
    has_splits: whether items say their split.
    """

    title: str
    items: Callable[[Path], Iterator[Item | Skip]] | None
    has_splits: bool = False
