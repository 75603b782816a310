"""SHA256SUMS: the digest of every file of a prepared folder, as `sha256sum` writes and checks it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ressa.data.images import shown
from ressa.errors import RessaError

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
    root = Path(folder)
    sums = root / SUMS
    if not sums.is_file():
        raise RessaError(f"{folder}: no {SUMS}; only folders that `ressa data` prepared have one")
    wrong: dict[str, list[str]] = {"missing": [], "changed": [], "not listed": []}
    names, size = set(), 0
    lines = sums.read_text(encoding="utf-8").splitlines()
    for n, line in enumerate(lines, 1):
        name, found = _line(line, f"{sums}:{n}")
        names.add(name)
        path = root / name
        if not path.is_file():
            wrong["missing"].append(name)
        else:
            size += path.stat().st_size
            if digest(path) != found:
                wrong["changed"].append(name)
        if progress:
            progress(n, len(lines), "")
    wrong["not listed"] = sorted(_files(root) - names - {SUMS})
    if any(wrong.values()):
        told = "; ".join(f"{len(files)} {what}, such as {files[0]}" for what, files in wrong.items() if files)
        raise RessaError(f"{folder}: is not as it was prepared: {told}; restore the files or prepare it again")
    return {"files": len(names), "bytes": size}


def _line(line: str, where: str) -> tuple[str, str]:
    found = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
    if not found or os.path.isabs(found[2]) or ".." in found[2].split("/"):
        raise RessaError(f"{where}: must be a SHA-256 and the name of a file below the folder, not {shown(line)}")
    return found[2], found[1]


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
