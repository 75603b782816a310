"""Downloads of single pictures: bounded in time and size, tried again where that may help (`urllib3`)."""

from __future__ import annotations

import time

import urllib3

from ressa.preparation.unusable import CUT, DEAD, HEAVY, MOST_BYTES, SLOW, Unusable

AGAIN = (408, 425, 429, 500, 502, 503, 504)  # what a server says that may be able to answer later
REDIRECTS = 5
PAUSE = 0.5  # seconds before the second try; twice as long before each further one


def pool(workers: int) -> urllib3.PoolManager:
    """Connections for that many threads."""
    return urllib3.PoolManager(num_pools=workers, maxsize=workers, headers={"User-Agent": "ressa", "Accept": "image/*"})


def fetch(http: urllib3.PoolManager, url: str, *, timeout: float, retries: int) -> bytes:
    """The bytes at `url`, after at most `retries` further tries of at most `timeout` seconds each.

    Raises:
        Unusable: dead link, timeout, cut off in transfer, too many bytes; of several tries, as the last one ended.
    """
    for attempt in range(retries):
        try:
            return _once(http, url, timeout)
        except Unusable as error:
            if not error.transient:
                raise
        time.sleep(PAUSE * 2**attempt)
    return _once(http, url, timeout)


def _once(http: urllib3.PoolManager, url: str, timeout: float) -> bytes:
    until = time.monotonic() + timeout
    limits = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=REDIRECTS)
    try:
        answer = http.request("GET", url, preload_content=False, timeout=urllib3.Timeout(total=timeout), retries=limits)
        try:
            if answer.status != 200:
                raise Unusable(DEAD, f"HTTP {answer.status}", transient=answer.status in AGAIN)
            return _body(answer, until, timeout)
        finally:
            answer.close()  # half-read connections are not used again
    except urllib3.exceptions.LocationValueError as error:
        raise Unusable(DEAD, f"no address ({error})") from None
    except (urllib3.exceptions.HTTPError, OSError, UnicodeError) as error:
        raise _reason(error, timeout) from None


def _reason(error: Exception, timeout: float) -> Unusable:
    cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
    refused = isinstance(cause, urllib3.exceptions.NewConnectionError)  # a TimeoutError by inheritance
    if not refused and isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError):
        return Unusable(SLOW, f"no answer within {timeout:g} s", transient=True)
    if isinstance(cause, urllib3.exceptions.ProtocolError):
        return Unusable(CUT, str(cause), transient=True)
    return Unusable(DEAD, str(cause).partition("): ")[2] or str(cause), transient=True)


def _body(answer: urllib3.BaseHTTPResponse, until: float, timeout: float) -> bytes:
    parts, size = [], 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise Unusable(HEAVY, f"more than {MOST_BYTES:,}")
        if time.monotonic() > until:
            raise Unusable(SLOW, f"{size:,} bytes within {timeout:g} s", transient=True)
    return b"".join(parts)
