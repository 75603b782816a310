"""How commands end: codes that shells expect, one line, nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import typer

from ressa import cli
from ressa.cli.exits import carry_out
from ressa.errors import RessaError

RESSA = [sys.executable, "-m", "ressa.cli"]
SMALL = ["--train", "1", "--validation", "1", "--test", "1"]


def ends(error: BaseException) -> int:
    def command() -> None:
        raise error

    return carry_out(command)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RessaError("x: is wrong"), 2, "ressa: x: is wrong"),
        (KeyboardInterrupt(), 130, "ressa: stopped"),
        (typer.Abort(), 130, "ressa: stopped"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
        (
            OSError(28, "No space left on device"),
            2,
            "ressa: what is printed cannot be written: No space left on device",
        ),
        (PermissionError(13, "Permission denied", "/a\x1b[31m"), 2, r"ressa: /a\x1b[31m: Permission denied"),
        (typer.BadParameter("not \x1b[31m this."), 2, r"ressa: Invalid value: not \x1b[31m this"),
    ],
)
def test_every_end_that_can_be_foreseen_has_its_code_and_at_most_one_line(capsys, error, code, line):
    assert ends(error) == code
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"{line}\n" if line else "")


def test_a_fault_of_our_own_is_not_hidden():
    for error in (ValueError("ours"), OSError("without a number")):
        with pytest.raises(type(error)):
            ends(error)


def test_a_command_leaves_the_handling_of_signals_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    assert carry_out(lambda: None) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prun"], "No such command 'prun'. Did you mean 'prune', 'run'?; ressa --help shows what there is"),
        (["prune", "m", "--metod", "x"], "No such option: --metod (Possible options: --method, --seed)"),
        (["prune"], "Missing argument"),
        (["prune", "m", "out", "--samples", "many"], "'--samples'"),
        (["inspect", "m", "--samples", "0"], "samples: 0 must be at least 1"),
        (["evaluate", "m", "--limit"], "Option '--limit' requires an argument"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line_too(refused, words, told):
    assert told in refused(*words)


def test_no_words_at_all_are_answered_by_the_help(ressa):
    code, out, err = ressa()
    assert code == 2
    assert "repair" in out + err


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_leaves_nothing_half_written(tmp_path, sent, code):
    words = [*RESSA, "data", "emoji", str(tmp_path / "new" / "out")]
    # a shell that starts tests in the background has them ignore Ctrl-C, and they hand that on
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("new/.out.*/images/*")):
        assert time.monotonic() < until
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(sent)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here that is always full")
def test_a_result_that_cannot_be_printed_is_no_success(tmp_path):
    with open("/dev/full", "w") as full:
        words = [*RESSA, "data", "emoji", str(tmp_path / "out"), *SMALL]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "ressa: what is printed cannot be written: No space left on device"


def test_closed_outputs_are_no_fault(tmp_path):
    line = '"$@" >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, "sh", *RESSA, "data", "emoji", str(tmp_path / "out"), *SMALL])
    assert done.returncode == 0
    assert (tmp_path / "out" / "train.jsonl").is_file()


def test_a_terminal_without_unicode_gets_letters_spelled_out(tmp_path):
    out = tmp_path / "größe-日本"
    ascii_only = os.environ | {
        "PYTHONIOENCODING": "ascii",
        "TERM": "dumb",
        "COLUMNS": "20",
    }
    words = [*RESSA, "data", "emoji", str(out), *SMALL]
    done = subprocess.run(words, capture_output=True, text=True, env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert r"gr\xf6\xdfe-\u65e5\u672c: 1 + 1 + 1 + 1 scenes" in done.stdout
    again = subprocess.run(words, capture_output=True, text=True, env=ascii_only)
    assert again.returncode == 2
    assert r"gr\xf6\xdfe-\u65e5\u672c: the output folder is not empty" in again.stderr


def test_the_help_has_no_colours_in_a_pipe():
    done = subprocess.run([*RESSA, "prune", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert cli.app.info.name == "ressa"
