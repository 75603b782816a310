"""Locks between processes on one machine or on many that share a folder: a file that only one of them can make.

The file holds who made it; a thread touches it while its owner lives. A lock whose owner is gone (a process of this
machine that ended, or no touch for `STALE` seconds) is taken over. Times are those of the file system, for clocks of
machines differ.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT, STALE = 5.0, 60.0  # seconds between touches; without one its owner is gone


@contextmanager
def held(path: Path) -> Iterator[Callable[[], bool] | None]:
    """Holds the lock `path` meanwhile, and gives what tells whether it still does; None if another process has it.

    Only a process that stood still for `STALE` seconds (a laptop asleep) can lose what it holds.
    """
    owner = f"{_here()} {os.getpid()} {uuid.uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _made(path, owner) and not (_abandoned(path) and _taken_over(path, owner)):
        yield None
        return
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, owner, done), daemon=True)
    beating.start()
    try:
        yield lambda: _owner(path) == owner
    finally:
        done.set()
        beating.join()
        if _owner(path) == owner:
            path.unlink(missing_ok=True)


@contextmanager
def waiting(path: Path, unless: Callable[[], bool] = lambda: False, every: float = 0.5) -> Iterator[None]:
    """Holds the lock as soon as no other process does; or goes on without, once `unless` is true."""
    while not unless():
        with held(path) as mine:
            if mine:
                yield
                return
        time.sleep(every)
    yield


def _made(path: Path, owner: str) -> bool:
    """The file appears with its owner in it, for a link is made at once or not at all."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(owner, encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _made_plain(path, owner)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _made_plain(path: Path, owner: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(owner)
    except FileExistsError:
        return False
    return True


def _beat(path: Path, owner: str, done: threading.Event) -> None:
    while not done.wait(BEAT):
        if _owner(path) != owner:
            return
        with suppress(OSError):
            os.utime(path)


def _owner(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _abandoned(path: Path) -> bool:
    """Whether the owner is gone; a lock that is not there any more is to be asked for again."""
    owner = (_owner(path) or "").rsplit(" ", 2)
    if len(owner) == 3 and owner[0] == _here() and not _alive(int(owner[1])):
        return True
    return (age := _age(path)) is not None and age > STALE


def _age(path: Path) -> float | None:
    """Seconds since the last touch, by the clock of the file system."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return None
    finally:
        probe.unlink(missing_ok=True)


def _taken_over(path: Path, owner: str) -> bool:
    """One of those who found the owner gone removes the lock and makes it anew; it looks again, alone."""
    guard = path.with_name(f"{path.name}.takeover")
    if not _made(guard, owner):
        if (age := _age(guard)) is not None and age > STALE:  # its maker was killed within this function
            guard.unlink(missing_ok=True)
        return False
    try:
        if not _abandoned(path):
            return False
        path.unlink(missing_ok=True)
        return _made(path, owner)
    finally:
        guard.unlink(missing_ok=True)


def _here() -> str:
    """This machine, and where the number of a process counts in it: containers count their own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # to ask would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
