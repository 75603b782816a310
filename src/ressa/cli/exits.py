"""How a command ends: what is wrong is one line on stderr, and the exit code is the one that shells expect."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import typer

from ressa.errors import RessaError, printable
from ressa.parallel import rank, silent

UNREAD, REFUSED, INTERRUPTED, TERMINATED = 1, 2, 128 + 2, 128 + 15
FIRST = 5.0  # seconds for the first process to say its line: a launcher ends all others once one has ended


class _Terminated(BaseException):
    """Like KeyboardInterrupt: nothing that handles faults takes it for one."""


def carry_out(command: Callable[[], Any]) -> int:
    """The exit code of `command`, after the line that says why, where there is something to say."""
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as stderr is
    try:
        with _terminable():
            code = command()
            if sys.stdout is not None:  # closed by the shell: >&-
                sys.stdout.flush()
    except RessaError as error:
        return _fail(str(error), REFUSED)
    except BrokenPipeError:  # of `| head`: who reads has enough
        _forget_stdout()
        return UNREAD
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(INTERRUPTED)
    except _Terminated:
        return _stopped(TERMINATED)
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is None:
            _forget_stdout()
        where = "what is printed cannot be written" if error.filename is None else error.filename
        return _fail(f"{where}: {error.strerror}", REFUSED)
    except Exception as error:  # click's own refusals, whichever package it comes in
        if not hasattr(error, "format_message"):
            raise
        return _misused(error)
    return _stopped(INTERRUPTED) if code == INTERRUPTED else code or 0


def _stopped(code: int) -> int:
    """All processes are stopped at once; one says it."""
    return code if rank() else _fail("stopped", code)


def _misused(error: Any) -> int:
    """A command line that cannot be read; without any words the help is what is wanted."""
    if rank():
        return REFUSED
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return REFUSED
    help = f"; {error.ctx.command_path} --help shows what there is" if getattr(error, "ctx", None) else ""
    return _fail(str(RessaError(error.format_message().rstrip(".") + help)), REFUSED)


def _fail(line: str, code: int) -> int:
    if silent():
        time.sleep(FIRST)
    else:
        print(f"ressa: {printable(line)}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """A polite end (SIGTERM: schedulers, containers) tidies up as Ctrl-C does."""

    def end(*_: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _forget_stdout() -> None:
    """Or Python would try to write what is left, and complain of it, when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
