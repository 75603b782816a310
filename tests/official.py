"""Miniatures of published data sets in their publishers' formats, and pictures with everything that can be wrong."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ressa.errors import RessaError
from ressa.preparation import verb
from ressa.preparation.output import REPORT
from ressa.preparation.settings import Prepare

# What each kind of odd picture must become: a reason for being left out, or a conversion.
UNUSABLE = {
    "corrupt.png": "damaged",
    "truncated.jpg": "damaged",
    "truncated.png": "damaged",
    "enormous.png": "enormous",
    "page.jpg": "not a picture",
    "empty.jpg": "not a picture",
}
CONVERTED = {
    "cmyk.jpg": "cmyk",
    "animated.gif": "animated, palette",
    "turned.jpg": "turned upright",
    "alpha.png": "alpha",
}


def photo(n: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture that no other number has, with some detail."""
    small = Image.frombytes("RGB", (4, 3), bytes((n * 37 + i * (11 + n % 7)) % 256 for i in range(36)))
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def odd(name: str, n: int) -> bytes:
    """The bytes of one of the odd kinds above."""
    jpeg, png = encoded(photo(n), quality=90), encoded(photo(n), "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [photo(n + i).quantize(16) for i in range(3)]
    return {
        "corrupt.png": lambda: png[:60] + bytes(255 - b for b in png[60:90]) + png[90:],
        "truncated.jpg": lambda: jpeg[: len(jpeg) * 2 // 3],
        "truncated.png": lambda: png[: len(png) // 2],
        "enormous.png": lambda: enormous(60_000, 50_000),
        "page.jpg": lambda: b"<!doctype html><title>404</title>",
        "empty.jpg": lambda: b"",
        "cmyk.jpg": lambda: encoded(photo(n).convert("CMYK")),
        "animated.gif": lambda: encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "turned.jpg": lambda: encoded(photo(n), exif=turned),
        "alpha.png": lambda: encoded(photo(n).convert("RGBA"), "PNG"),
    }[name]()


def enormous(width: int, height: int) -> bytes:
    """A sound PNG header that claims to be that large, with hardly any data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def dump(path: Path, told: Any) -> Path:
    return put(path, json.dumps(told).encode())


def coco(root: Path, n: int = 8) -> Path:
    """dataset_coco.json and pictures in train2014/ and val2014/, n in all; each split of Karpathy's comes in turn."""
    images = []
    for i in range(n):
        split = ("train", "restval", "val", "test")[i % 4]
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{i:012d}.jpg"
        put(root / "images" / folder / name, encoded(photo(i)))
        captions = [f"picture {i} has many colours in it", f"there is number {i}"]
        sentences = [
            {"tokens": told.split(), "raw": told, "imgid": i, "sentid": 10 * i + k} for k, told in enumerate(captions)
        ]
        images.append(
            {
                "filepath": folder,
                "sentids": [s["sentid"] for s in sentences],
                "filename": name,
                "imgid": i,
                "split": split,
                "sentences": sentences,
                "cocoid": i,
            }
        )
    return dump(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def cc3m_tsv(root: Path, addresses: list[str]) -> Path:
    lines = [f"caption number {i} of a web page\t{address}" for i, address in enumerate(addresses)]
    return put(root / "Train_GCC-training.tsv", ("\n".join(lines) + "\n").encode())


def cc3m_shards(root: Path, n: int = 6, per_shard: int = 4) -> Path:
    """Tar shards as img2dataset writes them: .jpg, .txt and .json of each sample."""
    for start in range(0, n, per_shard):
        files: dict[str, bytes] = {}
        for i in range(start, min(start + per_shard, n)):
            key, caption = f"{i:09d}", f"sample {i} of a shard"
            told = {"caption": caption, "url": f"http://example.org/{i}.jpg", "key": key, "status": "success"}
            parts = {"jpg": encoded(photo(i)), "txt": caption.encode(), "json": json.dumps(told).encode()}
            files |= {f"{key}.{kind}": data for kind, data in parts.items()}
        tar_of(root / f"{start // per_shard:05d}.tar", files)
    return root


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(put(path, b""), "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def vg_pictures(root: Path, n: int = 4) -> None:
    for i in range(1, n + 1):
        put(root / ("VG_100K" if i % 2 else "VG_100K_2") / f"{i}.jpg", encoded(photo(i)))


def vg_regions(root: Path, n: int = 4) -> Path:
    """region_descriptions.json, three regions a picture."""
    vg_pictures(root, n)
    box = {"x": 1, "y": 2, "width": 9, "height": 9}
    told = [
        {
            "id": i,
            "regions": [
                {"region_id": 100 * i + k, "image_id": i, "phrase": f"thing {k} on the wall", **box} for k in range(3)
            ],
        }
        for i in range(1, n + 1)
    ]
    return dump(root / "region_descriptions.json", told)


def vg_questions(root: Path, n: int = 4) -> Path:
    """question_answers.json, two questions a picture."""
    vg_pictures(root, n)
    rest = {"a_objects": [], "q_objects": []}
    told = [
        {
            "id": i,
            "qas": [
                {"qa_id": 100 * i + k, "image_id": i, "question": f"What is thing {k}?", "answer": f"Owl {i}.", **rest}
                for k in range(2)
            ],
        }
        for i in range(1, n + 1)
    ]
    return dump(root / "question_answers.json", told)


def gqa(root: Path, n: int = 4) -> Path:
    """train_balanced_questions.json, two questions a picture, and the pictures in images.zip as published."""
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for i in range(n):
            archive.writestr(f"images/{2370000 + i}.jpg", encoded(photo(i)))
    told = {
        f"{7000000 + q:08d}": {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "wall (1)"}],
            "imageId": str(2370000 + q % n),
            "question": f"What is on the wall, number {q}?",
            "answer": "pipe",
            "fullAnswer": "The pipe is on the wall.",
            "isBalanced": True,
            "groups": {"global": None, "local": "10q-wall_on,s"},
            "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
        }
        for q in range(2 * n)
    }
    return dump(root / "train_balanced_questions.json", told)


def llava(root: Path) -> Path:
    """llava_v1_5_mix665k.json: two turns, another conversation about the same picture, and one without a picture."""
    for i in range(2):
        put(root / "coco" / "train2017" / f"{i:012d}.jpg", encoded(photo(i)))

    def turns(*told: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(told)]

    first, second = "coco/train2017/000000000000.jpg", "coco/train2017/000000000001.jpg"
    asked = turns("<image>\nWhat is shown?", "A bus.", "What colour is it?", "Red and white.")
    told = [
        {"id": "000000000000", "image": first, "conversations": asked},
        {"id": "000000000001", "image": second, "conversations": turns("Where is it?\n<image>", "On a street.")},
        {"id": "000000000000", "image": first, "conversations": turns("<image>\nIs it day?", "Yes")},
        {"id": "wgByO4Y_0", "model": "", "conversations": turns("Write a poem.", "No.")},
    ]
    return dump(root / "llava_v1_5_mix665k.json", told)


def sharegpt4v(root: Path) -> Path:
    put(root / "sam" / "images" / "sa_545504.jpg", encoded(photo(3)))
    said = [
        {"from": "human", "value": "What do you see happening in this image?\n<image>"},
        {"from": "gpt", "value": "The image depicts a scene of many colours, from left to right."},
    ]
    told = [{"id": "sa_545504", "image": "sam/images/sa_545504.jpg", "conversations": said}]
    return dump(root / "sharegpt4v_instruct_gpt4-vision_cap100k.json", told)


# ---- what tests of preparation ask of a folder -----------------------------------------------------------------------


def prepare(name: str, source: str, out: Path, images: Sequence[str] = (), **settings: Any) -> dict[str, Any]:
    return verb.prepare(name, source, out, images=images, settings=Prepare(**settings))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lines(folder: Path, split: str = "train") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def report(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / REPORT).open(encoding="utf-8", newline="") as file:
        return {row["picture"]: row for row in csv.DictReader(file)}


def refusal(*args, **options) -> str:
    with pytest.raises(RessaError) as caught:
        prepare(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
