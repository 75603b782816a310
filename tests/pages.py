"""The pages of the documentation: their fenced blocks and the commands in them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if p.is_file()),
    *sorted(ROOT.glob("docs/**/*.md")),
]


@dataclass(frozen=True)
class Fence:
    """One fenced block of a page."""

    line: int
    language: str
    slow: bool
    text: str


def fences(page: Path) -> list[Fence]:
    found, start, info, body = [], 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            body.append(line)
        elif start:
            found.append(Fence(start, info.partition(" ")[0], " slow" in info, "\n".join(body) + "\n"))
            start = 0
        else:
            start, info, body = number, line.removeprefix("```"), []
    assert not start, f"{page}: the block that opens in line {start} does not close"
    return found


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(text: str) -> list[tuple[list[str], list[str]]]:
    """(words of a command, lines shown below it); a command may go on after a backslash."""
    told: list[tuple[list[str], list[str]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            told.append((shlex.split(line.removeprefix("$ "), comments=True), []))
        elif line.strip():
            told[-1][1].append(line)
    return told


def opening(page: Path) -> list[tuple[str, ...]]:
    """The commands with which a page begins, before it does anything else."""
    found: list[tuple[str, ...]] = []
    for fence in fences(page):
        if fence.slow or fence.language in ("python", "yaml", "jsonl"):
            break
        if fence.language == "console":
            found += [tuple(command) for command, _ in commands(fence.text) if command[0] == "ressa"]
    return found
