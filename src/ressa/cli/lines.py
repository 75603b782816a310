"""Progress where there is no terminal, in a log file: a plain line now and then instead of a bar that moves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from ressa.errors import printable

EVERY = 10.0  # seconds between two lines, at least


class Lines:
    """Hands out progress callables that print "pruning: 3 of 12 (25%), 0:01:20 left, NAME" to stderr.

    The clock is one for all of them. What takes less than `every` seconds prints nothing.
    """

    def __init__(self, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self.clock, self.stream = every, clock, sys.stderr  # even if stderr leads elsewhere later
        self.last = clock()

    def __call__(self, title: str) -> Callable[[int, int | None, str], None]:
        """A callable for one task, called with (done, total, what)."""
        started, begun_at = self.clock(), None

        def update(done: int, total: int | None, what: str) -> None:
            nonlocal begun_at
            begun_at = done if begun_at is None else begun_at  # a resumed task did the rest in another run
            now = self.clock()
            if now - self.last < self.every:
                return
            self.last = now
            line = _line(title, done, total, what, now - started, done - begun_at)
            print(printable(line), file=self.stream, flush=True)

        return update


def _line(title: str, done: int, total: int | None, what: str, seconds: float, did: int) -> str:
    parts = [f"{done:,} of {total:,} ({done / total:.0%})" if total else f"{done:,}"]
    parts.append(f"{_time(seconds / did * (total - done))} left" if total and did > 0 else f"{_time(seconds)} so far")
    if more := what.removeprefix(title).lstrip(", "):
        parts.append(more)
    return f"{title}: {', '.join(parts)}"


def _time(seconds: float) -> str:
    """Hours, minutes and seconds: 0:01:20."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
