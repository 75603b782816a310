"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ressa.errors import RessaError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # told without the name of a file


def check_output(out: str | Path) -> None:
    """Raises RessaError if `out` exists and is not an empty folder, or could not be written. Leaves nothing behind."""
    path = Path(out)
    if os.path.lexists(path) and not path.is_dir():
        raise RessaError(f"{out}: the output is a file; name a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise RessaError(f"{out}: the output folder is not empty; name a new one or empty it")
    check_writable(path)


def check_writable(out: str | Path) -> None:
    """Raises RessaError if nothing could be made in (or as) the folder `out`. Leaves nothing behind."""
    above = Path(out).absolute()
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise RessaError(f"{out}: {above} is a file; name a folder")
    # permission bits do not tell of read-only mounts or of root, so a folder is really made
    probe = above / f".ressa-{uuid.uuid4().hex}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise RessaError(f"{out}: the output folder cannot be written ({error.strerror} in {above})") from None


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, on the same file system, gone afterwards whatever happens."""
    folder = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    with tidy_parents(path):
        try:
            folder.mkdir(parents=True)
            yield folder
        except OSError as error:
            raise not_written(path, folder, error) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def not_written(path: Path, folder: Path, error: OSError) -> RessaError:
    """What to say of an error while `folder` was filled for `path`: that it cannot be written, or what else failed,
    for that may be a file that was read, or a connection."""
    if error.errno in FULL or (isinstance(error.filename, str | os.PathLike) and _meets(Path(error.filename), folder)):
        return RessaError(f"{path}: cannot be written ({error.strerror or error})")
    return RessaError(f"{path}: not written, for something else failed: {str(error) or type(error).__name__}")


def _meets(named: Path, folder: Path) -> bool:
    """Whether `named` is in the folder, or one that it stands in."""
    named, folder = named.absolute(), folder.absolute()
    return named.is_relative_to(folder) or folder.is_relative_to(named)


@contextmanager
def tidy_parents(path: Path) -> Iterator[None]:
    """Parents of `path` that are made meanwhile are gone afterwards, unless something stands in them."""
    made = [above for above in path.parents if not above.exists()]
    try:
        yield
    finally:
        for above in made:  # the nearest first
            if above.is_dir() and not any(above.iterdir()):
                above.rmdir()


def sync(path: Path) -> None:
    """Until it is on the disk, a crash could leave the name without the bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
