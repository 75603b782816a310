"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ressa.errors import RessaError
from ressa.files.paths import path_of

LONGEST = "model-00001-of-00001.safetensors.index.json"  # as long as any name that is written into an output

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # told without the name of a file


def check_output(out: str | Path, *read: str | Path | None) -> Path:
    """`out` as a path. Raises RessaError if it exists and is not an empty folder, or could not be written.

    Leaves nothing behind.

    `read`: folders that are read (other things are passed over), which `out` may not lie in.
    """
    path = path_of(out, "the output")
    if path.is_symlink():
        raise RessaError(f"{path}: the output is a link; name the folder it leads to, {os.path.realpath(path)}")
    if os.path.lexists(path) and not path.is_dir():
        raise RessaError(f"{path}: the output is a file; name a new folder")
    if path.name == "..":
        raise RessaError(f"{path}: the output ends in ..; name the folder itself")
    if path.is_dir() and any(path.iterdir()):
        raise RessaError(f"{path}: the output folder is not empty; name a new one or empty it")
    _check_apart(path, read)
    _probe(path, path.absolute().parent, f".{path.absolute().name}.12345678.partial")  # what `partial` makes
    return path


def check_writable(out: str | Path, *read: str | Path | None) -> Path:
    """`out` as a path. Raises RessaError if nothing could be made in (or as) that folder; else as `check_output`."""
    path = path_of(out, "the output")
    _check_apart(path, read)
    _probe(path, path.absolute())
    return path


def _probe(out: Path, folder: Path, *names: str) -> None:
    """Raises RessaError if no file could be made in `folder`, which may not be there yet, or in `names` below it."""
    above = nearest(folder)
    if not above.is_dir():
        what = "a link to nothing" if above.is_symlink() else "a file"
        raise RessaError(f"{out}: {above} is {what}; name a folder")
    # permission bits do not tell of read-only mounts or of root, nor anything of lengths, so the very names are made
    probe = above / f".ressa-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir()
        deep = probe.joinpath(*folder.relative_to(above).parts, *names)
        deep.mkdir(parents=True, exist_ok=True)
        (deep / LONGEST).touch()
    except OSError as error:
        raise RessaError(f"{out}: the output folder cannot be written ({error.strerror} in {above})") from None
    finally:
        for made, _, files in os.walk(probe, topdown=False):
            for name in files:
                os.unlink(os.path.join(made, name))
            os.rmdir(made)


def nearest(folder: Path) -> Path:
    """The folder that `folder` will be made in: the nearest above it that is there."""
    above = folder.absolute()
    while not os.path.lexists(above):
        above = above.parent
    return above


def _check_apart(out: Path, read: Sequence[str | Path | None]) -> None:
    for folder in read:
        if folder is not None and os.path.isdir(folder) and _within(out, folder):
            raise RessaError(f"{out}: lies in {folder}, which is read and stays as it is; name a folder outside of it")


def _within(out: Path, folder: str | Path) -> bool:
    inner, outer = os.path.realpath(out), os.path.realpath(folder)
    return inner == outer or inner.startswith(os.path.join(outer, ""))


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, on the same file system, gone afterwards whatever happens."""
    folder = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    with tidy_parents(path):
        try:
            with writing(path, folder):
                folder.mkdir(parents=True)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def appear(folder: Path, path: Path, last: str, without: Sequence[str] = ()) -> None:
    """Gives a `partial` folder its name, `path`, once all of it is on the disk, the file called `last` as the last.

    `without`: files that were needed until then.
    """
    for file in sorted(folder.rglob("*"), key=lambda file: file.name == last):
        sync(file)
    sync(folder)
    os.replace(folder, path)
    for name in without:
        (path / name).unlink(missing_ok=True)
    sync(path.parent)


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
def writing(path: Path, folder: Path | None = None) -> Iterator[None]:
    """A full disk, a quota or a lost mount is one line that names `path`, whichever library met it.

    `folder` is what is filled for `path`, if it is not the path itself.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # what torch.save's writer raises
            raise
        if isinstance(error, OSError):
            raise not_written(path, folder or path, error) from None
        raise RessaError(f"{path}: cannot be written ({error})") from None


@contextmanager
def tidy_parents(path: Path) -> Iterator[None]:
    """Parents of `path` that are made meanwhile are gone afterwards, unless something stands in them."""
    made = [above for above in path.parents if not os.path.exists(above)]
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
