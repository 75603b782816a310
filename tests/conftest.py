"""Fixtures: one folder per pico model, built once per run, and a tiny data folder. Tests must not write into them.

torch and transformers are imported where they are used: the process that hands out the tests to others needs neither.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from ressa import cli

COLOURS = ["red", "green", "blue", "yellow"]
SHAPES = ["square", "circle"]
PROGRESS = re.compile(r"^\w+: [\d,]+ of [\d,]+ \(\d+%\).*\n", re.MULTILINE)  # where a machine is slow
TRACE = ("Traceback", "━", 'File "')  # of an error nobody foresaw, of a progress bar
SPLITS = {"train": 12, "validation": 4, "test": 8}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """One thread for every test, whatever a command line within the one before has set."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _imports_are_no_garbage():
    """A full collection, of which repair asks, need not look at what was imported: half a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def models_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def _built(name: str, root: Path) -> Path:
    import pico

    return pico.BUILDERS[name](root / name)


@pytest.fixture(scope="session")
def llava_folder(models_root) -> Path:
    return _built("llava", models_root)


@pytest.fixture(scope="session")
def blip2_opt_folder(models_root) -> Path:
    return _built("blip2_opt", models_root)


@pytest.fixture(scope="session")
def blip2_t5_folder(models_root) -> Path:
    return _built("blip2_t5", models_root)


@pytest.fixture(scope="session")
def instructblip_t5_folder(models_root) -> Path:
    return _built("instructblip_t5", models_root)


@pytest.fixture(scope="session")
def instructblip_llama_folder(models_root) -> Path:
    return _built("instructblip_llama", models_root)


@pytest.fixture(scope="session")
def causal_lm_folder(models_root) -> Path:
    return _built("causal_lm", models_root)


@pytest.fixture(scope="session")
def pruned(tmp_path_factory, llava_folder) -> Path:
    """A pruned pico model in float32."""
    from ressa import prune

    out = tmp_path_factory.mktemp("packed") / "pruned"
    prune(llava_folder, out, method="magnitude", sparsity="50%", vision="2:4")
    return out


@pytest.fixture(scope="session")
def packed(tmp_path_factory, pruned) -> Path:
    """The same, packed."""
    from ressa import export

    out = tmp_path_factory.mktemp("packed") / "packed"
    export(pruned, out)
    return out


@pytest.fixture
def datasets_cache(tmp_path_factory, monkeypatch):
    """Where `datasets` unpacks Parquet: not in the home of who runs the tests."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Pictures of one shape with questions: {split}.jsonl and images/; captions.jsonl holds captions instead."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    captions, number = [], 0
    for split, count in SPLITS.items():
        lines = []
        for _ in range(count):
            record, caption = _scene(root, number)
            lines.append(json.dumps(record))
            captions.append(json.dumps(caption))
            number += 1
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "captions.jsonl").write_text("\n".join(captions[:4]) + "\n", encoding="utf-8")
    return root


def _scene(root: Path, number: int) -> tuple[dict, dict]:
    """Scene `number`: its question alternates between the colour and the shape, so that answers differ in length."""
    colour, shape = COLOURS[number % 4], SHAPES[number // 4 % 2]
    image = Image.new("RGB", (40 + number % 3 * 8, 40), "white")
    draw, corner = ImageDraw.Draw(image), 4 + number % 5
    box = (corner, corner, corner + 22, corner + 22)
    if shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.ellipse(box, fill=colour)
    name = f"images/{number}.png"
    image.save(root / name)
    if number % 2:
        record = {"image": name, "question": "What colour is it?", "answer": colour, "kind": "colour"}
    else:
        question = f"Is the {colour} thing a square or a circle?"
        record = {"image": name, "question": question, "answers": [shape], "kind": "shape"}
    return record, {"image": name, "caption": f"a {colour} {shape}"}


@pytest.fixture
def ressa(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ressa", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def refused(ressa, tmp_path):
    """Runs what must be refused; gives the one line on stderr."""

    def run(*words: object) -> str:
        before = tree(tmp_path)
        code, out, err = ressa(*words)
        assert code == 2, (code, out, err)
        assert out == ""
        err = PROGRESS.sub("", err)
        assert err.startswith("ressa: ")
        assert len(err.splitlines()) == 1, err
        assert not any(mark in err for mark in TRACE)
        assert len(err.split()) >= 4, "too short to help"
        assert tree(tmp_path) == before
        return err

    return run


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file below `root` with its bytes, hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}
