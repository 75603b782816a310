"""The training of emoji-instructblip: what it is taught is what ressa asks, and the script runs from end to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import InstructBlipVisionModel

from ressa.data.emoji import write
from ressa.data.prompts import encode
from ressa.data.records import read_records
from ressa.model.load import load
from ressa.model.structure import structure

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    """The scripts are no package; they import one another."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory):
    """Scenes seen by a random tower, the processor, and the collator of questions."""
    from emoji_chats import make_scenes
    from emoji_queries import Questions
    from emoji_tower import VISION, SeenScenes
    from train_emoji_instructblip import ASKED, make_processor

    work = tmp_path_factory.mktemp("work")
    make_scenes(work, 48)
    scenes = SeenScenes(work, InstructBlipVisionModel(VISION))
    processor = make_processor(scenes)
    return scenes, processor, Questions(scenes, processor, 8, ASKED)


def test_it_is_taught_the_tokens_and_pictures_that_ressa_shows_it(taught, tmp_path: Path) -> None:
    from emoji_queries import QUERIES
    from emoji_tower import VISION
    from train_emoji_instructblip import make_model

    scenes, processor, questions = taught
    model = make_model(processor.tokenizer, InstructBlipVisionModel(VISION))
    records = read_records(write(tmp_path / "data", train=8, validation=1, test=1), "train")
    batch = encode(processor, records, model.config, answers=True)
    for row, record in enumerate(records):
        ids, start = questions.prompt(record.question)
        assert batch["qformer_input_ids"][row, : len(ids)].tolist() == ids
        assert batch["input_ids"][row, : QUERIES + len(ids)].tolist() == questions.image + ids
        answer = [*questions.ask.tokens(record.target), questions.end]
        assert batch["labels"][row, : len(answer)].tolist() == answer
        asked = processor.tokenizer.decode(ids[start:])
        assert asked.startswith(record.question)
    drawn = {p.tobytes() for p in scenes.pixels}
    first = next(r for r in records if bytes(r.open_image().tobytes()) in drawn)
    index = [p.tobytes() for p in scenes.pixels].index(first.open_image().tobytes())
    seen = processor.image_processor([first.open_image()], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen, scenes.pictures([index]))


def test_pointers_and_cells_say_where_things_stand(taught) -> None:
    from emoji_chats import AWAY, NAMES

    scenes, processor, questions = taught
    batch = questions(list(range(16)))
    texts = processor.tokenizer.batch_decode(batch["qformer_input_ids"], skip_special_tokens=True)
    assert len(batch["mentions"]) > 10
    for row, token, bits, number in batch["mentions"].tolist():
        shown = scenes.scenes[int(batch["scene"][row])]
        there = [p.cell for p in shown.placed if p.thing.name == NAMES[number]]
        assert bits == (1 << there[0] if there else 1 << AWAY)
        upto = processor.tokenizer.decode(batch["qformer_input_ids"][row, : token + 1])
        assert upto.endswith(NAMES[number])
    for row in batch["reads"].nonzero().flatten().tolist():
        shown = scenes.scenes[int(batch["scene"][row])]
        cell = int(batch["cells"][row]).bit_length() - 1
        labels = batch["labels"][row]
        answer = processor.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)
        thing = shown.at(cell)
        about = (thing.name, thing.kind) if thing else ("nothing", "nothing")
        assert answer in about or "Where is the" in texts[row]


@pytest.mark.slow
def test_the_script_runs_from_end_to_end_and_leaves_an_ordinary_model(tmp_path: Path) -> None:
    script, one_thread = str(SCRIPTS / "train_emoji_instructblip.py"), os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, str(tmp_path), "--quick", "--scenes", "150"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
    assert "class token: patches differ by 1" in told.stdout
    model, processor = load(tmp_path / "emoji-instructblip")
    assert type(model).__name__ == "InstructBlipForConditionalGeneration"
    assert 3e6 <= sum(p.numel() for p in model.parameters()) <= 8e6
    assert set(structure(model).parts) == {"vision", "connector", "language"}
    assert processor.num_query_tokens == model.config.num_query_tokens
    again = subprocess.run(
        command, capture_output=True, text=True, check=True, env=one_thread
    )  # finished stages are not run again
    assert "train_runtime" not in again.stdout
