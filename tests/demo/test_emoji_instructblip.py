"""The second embedded model: what it must be, what it can answer, that it feels pruning, and that plain transformers
loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ressa
from ressa.data.emoji import write
from ressa.data.records import read_records
from ressa.demo import INSTRUCTBLIP
from ressa.families import QUESTION
from ressa.model.load import load

pytestmark = pytest.mark.formats

# Plain transformers, told nothing of ressa, in float32: argv[1] is [[folder, [[picture, prompt], ...]], ...] in JSON.
PLAIN = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
said = []
for folder, asked in json.loads(sys.argv[1]):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for image, prompt in asked:
        inputs = processor(images=[Image.open(image)], text=[prompt], return_tensors="pt").to(model.dtype)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        said.append(processor.decode(ids[0], skip_special_tokens=True).strip())
assert not any(name.split(".")[0] == "ressa" for name in sys.modules)
print(json.dumps(said))
"""


def test_it_is_a_small_instructblip_with_a_card() -> None:
    model, processor = load("emoji-instructblip")
    assert type(model).__name__ == "InstructBlipForConditionalGeneration"
    assert type(processor).__name__ == "InstructBlipProcessor"
    assert 3e6 <= sum(p.numel() for p in model.parameters()) <= 8e6
    assert sum(f.stat().st_size for f in INSTRUCTBLIP.rglob("*") if f.is_file()) <= 12 * 2**20
    card = (INSTRUCTBLIP / "README.md").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in card
    assert "OpenMoji" in card


@pytest.mark.parametrize(
    ("test", "least"), [(50, 0.75), pytest.param(500, 0.8, marks=pytest.mark.slow)], ids=["some", "the whole split"]
)
def test_it_answers_scenes_it_has_never_seen_and_from_their_pictures(test: int, least: float, tmp_path: Path) -> None:
    scenes = write(tmp_path / "data", train=1, validation=1, test=test)
    seen, grey = (ressa.evaluate("emoji-instructblip", data=scenes, batch_size=64, grey=grey) for grey in (False, True))
    assert seen["n"] >= 3.8 * test
    assert seen["exact_match"] >= least
    assert grey["exact_match"] <= 0.45
    assert all(kind["exact_match"] >= 0.6 for kind in seen["by_kind"].values())


def test_it_feels_pruning_and_stays_an_ordinary_model(tmp_path: Path) -> None:
    scenes = write(tmp_path / "data", train=40, validation=1, test=40)
    pruned = tmp_path / "pruned"
    ressa.prune("emoji-instructblip", pruned, data=scenes, method="wanda", sparsity="2:4", samples=32)
    dense, sparse = (ressa.evaluate(m, data=scenes, batch_size=64) for m in ("emoji-instructblip", pruned))
    assert dense["exact_match"] - sparse["exact_match"] >= 0.1
    records = {r.id: r for r in read_records(scenes, "test")}
    asked, ours = [], []
    for folder in (INSTRUCTBLIP, pruned):
        told = ressa.evaluate(folder, data=scenes, limit=8, batch_size=1, max_new_tokens=32, dtype="float32")["answers"]
        asked.append(
            (str(folder), [(str(records[id].image.path), QUESTION.format(records[id].question)) for id in told])
        )
        ours += told.values()
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, json.dumps(asked)]
    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(plain.stdout) == ours
