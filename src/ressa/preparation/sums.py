"""SHA256SUMS: the digest of every file of a prepared folder, as `sha256sum` writes and checks it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ressa.errors import RessaError, shown
from ressa.files.paths import path_of

SUMS = "SHA256SUMS"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def write_sums(folder: Path, known: Iterable[tuple[str, str]]) -> None:
    """Writes SHA256SUMS: the files at the top of the folder, then the `known` (name, digest) ones below it."""
    top = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    with (folder / SUMS).open("w", encoding="utf-8") as file:
        for path in top:
            file.write(f"{digest(path)}  {path.name}\n")
        for name, found in known:
            file.write(f"{found}  {name}\n")


def check(folder: str | Path, progress: Callable[[int, int | None, str], None] | None = None) -> dict[str, int]:
    """How many files and bytes the folder holds, if each is as SHA256SUMS says and none is there besides.

    Raises:
        RessaError: files are missing, changed or additional (how many, and the first of each), or there are no sums.
    """
    root = path_of(folder, "the folder")
    sums = root / SUMS
    if not sums.is_file():
        raise RessaError(f"{folder}: no {SUMS}; only folders that `ressa data` prepared have one")
    wrong: dict[str, list[str]] = {"missing": [], "changed": [], "not listed": []}
    listed = present = size = 0
    total = sum(1 for _ in _lines(sums))
    for listed, (name, found) in enumerate(_lines(sums), 1):
        path = root / name
        if not path.is_file():
            wrong["missing"].append(name)
        else:
            present, size = present + 1, size + path.stat().st_size
            if digest(path) != found:
                wrong["changed"].append(name)
        if progress:
            progress(listed, total, "")
    if sum(1 for _ in _files(root)) > present:
        wrong["not listed"] = sorted(set(_files(root)) - {name for name, _ in _lines(sums)})
    if any(wrong.values()):
        counts = "; ".join(f"{len(files)} {what}, such as {files[0]}" for what, files in wrong.items() if files)
        raise RessaError(f"{folder}: is not as it was prepared: {counts}; restore the files or prepare it again")
    return {"files": listed, "bytes": size}


def _lines(sums: Path) -> Iterator[tuple[str, str]]:
    """(name, digest) of each line."""
    with sums.open(encoding="utf-8", errors="replace") as file:
        for n, line in enumerate(file, 1):
            found = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)\n?", line)
            if not found or os.path.isabs(found[2]) or ".." in found[2].split("/"):
                raise RessaError(
                    f"{sums}:{n}: must be a SHA-256 and the name of a file below the folder, not {shown(line)}"
                )
            yield found[2], found[1]


def _files(root: Path) -> Iterator[str]:
    """Names of all files but the sums themselves."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), root)
            if path != SUMS:
                yield path
