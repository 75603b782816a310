"""Why a picture is of no use. Never fatal: counted, and listed in report.csv."""

from __future__ import annotations

ABSENT = "not found"
DEAD = "dead link"
SLOW = "timeout"
CUT = "cut off in transfer"
HEAVY = "too many bytes"
OTHER = "not a picture"
DAMAGED = "damaged"
ENORMOUS = "enormous"
RANGELESS = "no range"

MOST_BYTES = 256 << 20  # of the file of one picture


class Unusable(Exception):  # noqa: N818 - not an error of the run
    """One picture that cannot be used: a reason from above, what was seen, and whether it may pass."""

    def __init__(self, reason: str, detail: str, *, transient: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.transient = reason, " ".join(detail.split())[:200], transient
