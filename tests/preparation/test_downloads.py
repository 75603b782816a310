"""Pictures behind addresses: dead links, slow and broken answers of a server on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

import official
from official import prepare, refusal, report
from ressa.data.records import read_records


class Pages(BaseHTTPRequestHandler):
    """/N.jpg is picture N; other paths fail in ways of their own. `asked` counts requests."""

    asked: ClassVar[Counter[str]] = Counter()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        data = official.encoded(official.photo(7))
        kind = self.path.strip("/").partition(".")[0]
        if kind == "hangs":
            time.sleep(4)
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/5.jpg")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        statuses = {"gone": 404, "busy": 503, "recovers": 503 if self.asked[self.path] == 1 else 200}
        self.send_response(statuses.get(kind, 200))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if kind == "drips":
            for i in range(40):
                self.wfile.write(data[i : i + 1])
                time.sleep(0.1)
        self.wfile.write(data[:300] if kind == "breaks" else b"<html>" + data[6:] if kind == "page" else data)
        self.close_connection = kind in ("breaks", "drips")
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def pages():
    Pages.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.handle_error = lambda *_: None  # clients that no longer wait
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("ressa.preparation.download.PAUSE", 0.01)
    return {"timeout": 1.2, "retries": 1}


FAULTS = {
    "gone": ("dead link", "HTTP 404", 1),
    "busy": ("dead link", "HTTP 503", 2),
    "hangs": ("timeout", "no answer within 1.2 s", 2),
    "drips": ("timeout", "within 1.2 s", 2),
    "breaks": ("cut off in transfer", "IncompleteRead", 2),
    "page": ("not a picture", "<html>", 1),
}


def test_of_addresses_the_dead_ones_are_named_with_what_they_said_and_tried_again_where_that_may_help(
    pages, impatient, tmp_path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/1.jpg"  # nobody listens once it is closed
    good = [f"{pages}/{i}.jpg" for i in range(12)] + [f"{pages}/moved.jpg", f"{pages}/recovers.jpg"]
    source = official.cc3m_tsv(tmp_path, [*good, *(f"{pages}/{kind}.jpg" for kind in FAULTS), closed])
    told = prepare("cc3m", str(source), tmp_path / "data", **impatient)
    assert told["pictures"] == {"asked": 21, "made": 14, "unusable": 7, "not asked": 0}
    assert told["unusable"] == {"cut off in transfer": 1, "dead link": 3, "not a picture": 1, "timeout": 2}
    named = report(tmp_path / "data")
    for kind, (reason, detail, tries) in FAULTS.items():
        row = named[f"{pages}/{kind}.jpg"]
        assert row["what"] == reason, row
        assert detail in row["detail"], row
        assert Pages.asked[f"/{kind}.jpg"] in ((1, 2) if reason == "timeout" else (tries,)), kind
    assert "refused" in named[closed]["detail"]
    assert Pages.asked["/recovers.jpg"] == 2
    assert len(read_records(tmp_path / "data")) == 14


def test_what_is_too_large_is_given_up(pages, impatient, tmp_path, monkeypatch):
    monkeypatch.setattr("ressa.preparation.download.MOST_BYTES", 500)
    source = official.cc3m_tsv(tmp_path, [f"{pages}/1.jpg"])
    assert "too many bytes 1" in refusal("cc3m", str(source), tmp_path / "data", **impatient)


def test_a_hopeless_run_stops_with_its_reasons_and_goes_on_where_more_is_allowed(pages, impatient, tmp_path):
    links = [f"{pages}/{'gone' if i % 4 else 'fine'}.jpg?{i}" for i in range(300)]
    source = official.cc3m_tsv(tmp_path, links)
    message = refusal("cc3m", str(source), tmp_path / "data", max_failed=0.6, workers=2, **impatient)
    assert "pictures cannot be used (dead link " in message
    assert "HTTP 404), more than --max-failed 0.6" in message
    asked = Pages.asked.total()
    assert 100 <= asked < 200
    told = prepare("cc3m", str(source), tmp_path / "data", max_failed=0.8, workers=2, **impatient)
    assert told["pictures"]["made"] == 75
    assert Pages.asked.total() <= 300 + 2 * 8  # nothing twice but what was under way


def test_what_failed_for_a_reason_that_may_pass_is_tried_again_by_the_next_run(pages, impatient, tmp_path):
    source = official.cc3m_tsv(tmp_path, [f"{pages}/recovers.jpg", f"{pages}/gone.jpg"])
    assert "dead link 2" in refusal("cc3m", str(source), tmp_path / "data", timeout=1.2, retries=0)
    told = prepare("cc3m", str(source), tmp_path / "data", **impatient)
    assert told["pictures"]["made"] == 1
    assert Pages.asked["/gone.jpg"] == 1
