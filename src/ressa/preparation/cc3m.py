"""Conceptual Captions (Sharma et al. 2018), as published and as img2dataset downloads it.

Published: a TSV file, a caption and the address of its picture a line, without a header. Downloaded: tar shards in the
layout of webdataset, `000000017.jpg` followed by `000000017.txt` (the caption) and `000000017.json`; a folder of them,
or one. Any other set in either format can be read as well.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ressa.data.fields import text
from ressa.data.items import Annotation, Item, Skip
from ressa.data.stream import text_lines
from ressa.errors import RessaError, shown

PICTURES = ("jpg", "jpeg", "png", "webp", "gif")
LONGEST = 1 << 20  # of a caption or its JSON in a shard, in bytes


def cc3m(source: Path) -> Iterator[Item | Skip]:
    """A picture with its caption. Raises RessaError for what is in neither format."""
    shards = sorted(source.glob("*.tar")) if source.is_dir() else [source] if source.suffix == ".tar" else []
    if not shards and not source.is_file():
        raise RessaError(
            f"{source}: no such file; give a TSV file of captions and addresses, or a folder of .tar shards"
        )
    if not shards:
        yield from (_line(line, where) for line, where in text_lines(source) if line.strip())
    for shard in shards:
        yield from _shard(shard)


def _line(line: str, where: str) -> Item:
    caption, *rest = line.split("\t")
    if not rest:
        raise RessaError(f"{where}: no tab; a line is a caption, a tab and the address of its picture")
    url = rest[0].strip()
    if not url.startswith(("http://", "https://")):
        raise RessaError(f'{where}: field "url", after the tab, must begin with http:// or https://, not {shown(url)}')
    return Item(url, ("url", url), (Annotation(caption.strip()),), where)


def _shard(path: Path) -> Iterator[Item | Skip]:
    """Samples are neighbours whose names agree up to the first dot after the last slash."""
    key, parts = "", dict[str, tarfile.TarInfo]()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                if f"{folder}/{stem}" != key and parts:
                    yield _sample(tar, path, key, parts)
                    parts = {}
                key = f"{folder}/{stem}"
                parts[kind.lower()] = member
            _check_end(path, tar.offset)
            if parts:
                yield _sample(tar, path, key, parts)
    except tarfile.TarError as error:
        raise RessaError(f"{path}: after {key.lstrip('/') or 'nothing'}: no sound tar file ({error})") from None
    except OSError as error:
        raise RessaError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_end(path: Path, offset: int) -> None:
    """Raises TarError unless zeros mark the end where reading ended; `tarfile` ends at a damaged header, too."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if not block or block.strip(b"\0"):
        raise tarfile.TarError(f"it breaks off or is damaged at byte {offset:,}")


def _sample(tar: tarfile.TarFile, path: Path, key: str, parts: dict[str, tarfile.TarInfo]) -> Item | Skip:
    where = f"{path}: sample {key.lstrip('/')}"
    found = next((parts[kind] for kind in PICTURES if kind in parts), None)
    if found is None:
        return Skip("without a picture")
    place = ("tar", str(path.absolute()), found.offset_data, found.size)
    return Item(f"{path.name}/{found.name}", place, (Annotation(_caption(tar, parts, where)),), where)


def _caption(tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo], where: str) -> str:
    kind = "txt" if "txt" in parts else "json"
    if kind not in parts:
        raise RessaError(f"{where}: no .txt and no .json beside the picture, so it has no caption")
    file = tar.extractfile(parts[kind])
    try:
        held = (file.read(LONGEST) if file else b"").decode("utf-8")
        return held.strip() if kind == "txt" else text(json.loads(held), "caption", where)
    except (ValueError, AttributeError, RecursionError):  # not UTF-8, no JSON, no object
        raise RessaError(f"{where}: its .{kind} cannot be read; it must be UTF-8 text or a JSON object") from None
