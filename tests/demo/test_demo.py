"""The embedded model: what it must be, what it can answer, and that every stage's folder is an ordinary model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ressa
from ressa.data.emoji import write
from ressa.data.records import read_records
from ressa.demo import EMBEDDED
from ressa.model.folder import verify, zeros
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.patterns import parse

pytestmark = pytest.mark.formats

# Plain transformers, told nothing of ressa, in float32: argv[1] is [[folder, [[picture, question], ...]], ...] in JSON.
PLAIN = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
said = []
for folder, asked in json.loads(sys.argv[1]):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for image, question in asked:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=[Image.open(image)], text=[prompt], return_tensors="pt").to(model.dtype)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        said.append(processor.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
assert not any(name.split(".")[0] == "ressa" for name in sys.modules)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("demo") / "data", train=40, validation=2, test=40)


@pytest.fixture(scope="module")
def stages(scenes: Path) -> dict[str, Path]:
    """dense, pruned to 2:4 by Wanda, and repaired for two steps."""
    pruned, repaired = scenes.parent / "pruned", scenes.parent / "repaired"
    ressa.prune("demo", pruned, data=scenes, method="wanda", sparsity="2:4", samples=32)
    ressa.repair(pruned, repaired, teacher="demo", data=scenes, steps=2, batch_size=4)
    return {"dense": EMBEDDED, "pruned": pruned, "repaired": repaired}


def test_it_is_a_small_llava_with_a_card() -> None:
    model, _ = load("demo")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert 2e6 <= sum(p.numel() for p in model.parameters()) <= 6e6
    assert sum(f.stat().st_size for f in EMBEDDED.iterdir()) <= 12 * 2**20
    card = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in card
    assert "OpenMoji" in card


@pytest.mark.parametrize(
    ("test", "least"), [(50, 0.8), pytest.param(500, 0.85, marks=pytest.mark.slow)], ids=["some", "the whole split"]
)
def test_it_answers_scenes_it_has_never_seen_and_from_their_pictures(test: int, least: float, tmp_path: Path) -> None:
    scenes = write(tmp_path / "data", train=1, validation=1, test=test)
    seen, grey = (ressa.evaluate("demo", data=scenes, batch_size=64, grey=grey) for grey in (False, True))
    assert seen["n"] >= 3.8 * test
    assert seen["exact_match"] >= least  # 0.855 of the whole split
    assert grey["exact_match"] <= 0.45
    assert all(kind["exact_match"] >= 0.6 for kind in seen["by_kind"].values())


def test_every_pruned_matrix_is_two_of_four_on_disk_before_and_after_repair(stages: dict[str, Path]) -> None:
    blocks = structure(load("demo")[0]).blocks(["vision", "language"])
    names = [name for block in blocks for name in block.linears]
    for stage in ("pruned", "repaired"):
        verify(stages[stage], dict.fromkeys(names, parse("2:4")))
    before, after = (zeros(stages[stage]) for stage in ("pruned", "repaired"))
    for name in names:
        assert before[name] == after[name]
        assert before[name].sparsity == 0.5


def test_every_stage_loads_with_plain_transformers_and_gives_the_same_answers(
    stages: dict[str, Path], scenes: Path
) -> None:
    records = {r.id: r for r in read_records(scenes, "test")}
    asked, ours = [], []
    for folder in stages.values():
        told = ressa.evaluate(folder, data=scenes, limit=8, batch_size=1, max_new_tokens=32, dtype="float32")["answers"]
        asked.append((str(folder), [(str(records[id].image.path), records[id].question) for id in told]))  # type: ignore[union-attr]
        ours += told.values()
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, json.dumps(asked)]
    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(plain.stdout) == ours
