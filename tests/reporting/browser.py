"""Headless Chromium, spoken to over a pipe (the DevTools protocol): no driver, no port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    "--remote-debugging-pipe",
)
PIPED = (  # Chromium listens at 3 and answers at 4
    "import fcntl, os, sys; a, b = (fcntl.fcntl(int(n), fcntl.F_DUPFD_CLOEXEC, 9) for n in sys.argv[1:3]); "
    "os.dup2(a, 3); os.dup2(b, 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def found() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `requests` and `faults` are all that it asked for and complained of."""

    def __init__(self, to: Any, back: Any) -> None:
        self._to, self._back, self._number, self._session = to, back, 0, None
        self.requests: list[str] = []
        self.faults: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        told = {"id": self._number, "method": method, "params": params}
        self._to.write(json.dumps(told | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        self._to.flush()
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def size(self, width: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def colours(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def _next(self) -> dict[str, Any]:
        letters = bytearray()
        while (letter := self._back.read(1)) not in (b"\0", b""):
            letters += letter
        assert letters, "Chromium is gone"
        told = json.loads(letters)
        method, params = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown" or method in ("Log.entryAdded", "Runtime.consoleAPICalled"):
            self.faults.append(str(params))
        return told


@contextmanager
def browser(program: str) -> Iterator[Page]:
    (read_to, write_to), (read_back, write_back) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        ends = (read_to, write_back)
        command = [sys.executable, "-c", PIPED, *map(str, ends), program, *FLAGS, f"--user-data-dir={home}"]
        process = subprocess.Popen(command, pass_fds=ends, stderr=subprocess.DEVNULL)
        os.close(read_to)
        os.close(write_back)
        try:
            with os.fdopen(write_to, "wb") as to, os.fdopen(read_back, "rb") as back:
                yield Page(to, back)
        finally:
            process.terminate()
            process.wait()
