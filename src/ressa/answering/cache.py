"""Answers kept on disk as they come: one JSON line each, appended, so that a kill loses none that was finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ressa import parallel
from ressa.errors import RessaError, to_json
from ressa.settings import Progress


def resumed(
    ids: Sequence[str],
    keys: Sequence[str],
    order: Callable[[list[int]], list[int]],
    ask: Callable[[list[int]], list[str]],
    cache: Path | None,
    batch_size: int,
    progress: Progress | None = None,
) -> list[str]:
    """An answer to each of several questions, those that `cache` knows and those that `ask` gives, in their order.

    Several processes share what is still to ask; each appends to a file of its own and all get all answers.

    Args:
        ids: what names a question for people; keys: what an answer depends on.
        order: puts indices of questions in the order in which they are batched.
        ask: answers to one batch, given by indices.
    """
    known = parallel.all_gather(read(cache))  # all have read before any writes, so all share out the same questions
    todo = [i for i, key in enumerate(keys) if key not in known]
    todo = order(todo) if todo else []
    batches = parallel.shard([todo[i : i + batch_size] for i in range(0, len(todo), batch_size)])
    before, mine = len(keys) - len(todo), dict[str, str]()
    for batch in batches:
        if progress:  # the other processes are about as far
            progress(min(before + len(mine) * parallel.world_size(), len(keys)), len(keys), "answering")
        lines = [{"key": keys[i], "id": ids[i], "answer": text} for i, text in zip(batch, ask(batch), strict=True)]
        mine |= {line["key"]: line["answer"] for line in lines}
        if cache:
            append(_own(cache), lines)
    known |= parallel.all_gather(mine)
    if progress:
        progress(len(keys), len(keys), "answering")
    return [known[key] for key in keys]


def read(cache: Path | None) -> dict[str, str]:
    """{key: answer} of a cache and of what other processes wrote beside it, up to lines that a kill cut off."""
    known = {}
    for path in files_of(cache) if cache else []:
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["answer"]
            except (ValueError, TypeError, KeyError):
                continue  # a line cut off by a kill: its question is asked again
    return known


def append(path: Path, lines: Sequence[dict[str, str]]) -> None:
    """Adds lines to a file, and an end to the last line there if a kill cut it off."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            end = file.tell()
            file.seek(max(end - 1, 0))
            broken = end > 0 and file.read(1) != b"\n"  # or the next line would continue the broken one
            text = "".join(to_json(line) + "\n" for line in lines)
            file.write((b"\n" if broken else b"") + text.encode())
    except OSError as error:
        raise RessaError(f"{path}: cannot be written ({error.strerror})") from None


def _own(cache: Path) -> Path:
    """The first process writes to `answers.cache.jsonl`, the second to `answers.cache.1.jsonl`."""
    return cache.with_suffix(f".{parallel.rank()}{cache.suffix}") if parallel.rank() else cache


def files_of(cache: Path) -> list[Path]:
    """The files of a cache, one of each process."""
    others = sorted(cache.parent.glob(f"{cache.stem}.*{cache.suffix}")) if cache.parent.is_dir() else []
    return [path for path in (cache, *others) if path.is_file()]
