"""Hidden-state distillation: nothing where nothing differs, no padding, and it pulls blocks back."""

from __future__ import annotations

import pytest
import torch

import ressa
from ressa.calibration.outputs import outputs_of
from ressa.calibration.samples import samples
from ressa.data.prompts import encode
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.evaluation.blocks import block_errors
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.repairing.hidden import hidden_loss


def told(student, teacher, batch):
    """The loss of one batch."""
    blocks, originals = (structure(model).blocks(("vision", "language")) for model in (student, teacher))
    with torch.no_grad(), outputs_of(blocks) as ours, outputs_of(originals) as theirs:
        for model in (student, teacher):
            model(**batch, use_cache=False)
        return hidden_loss(ours, theirs, blocks, batch, student.config).item()


@pytest.fixture(params=["llava", "blip2_opt", "blip2_t5", "instructblip_llama", "causal_lm"])
def folder(request):
    return request.getfixturevalue(f"{request.param}_folder")


def shrunk(folder):
    """The model with half of one linear's weight, in its last language block."""
    model, processor = load(folder)
    name = [
        n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ("layers.1" in n or "block.1" in n)
    ][-1]
    with torch.no_grad():
        for parameter in model.get_submodule(name).parameters():
            parameter.mul_(0.5)
    return model, processor


def test_a_student_that_is_its_teacher_has_nothing_to_learn(folder, tiny_data):
    model, processor = load(folder)
    batch = encode(processor, read_records(tiny_data, "train")[:3], model.config, answers=True)
    assert told(model, load(folder)[0], batch) == 0


def test_padding_has_no_part_in_it(folder, tiny_data):
    records = sorted(read_records(tiny_data, "train"), key=lambda r: len(r.question or ""))
    short, long = records[0], records[-1]
    model, processor = shrunk(folder)
    alone = told(model, load(folder)[0], encode(processor, [short], model.config, answers=True))
    padded = encode(processor, [short, long], model.config, answers=True)
    first = {key: value[:1] for key, value in padded.items()}
    assert told(shrunk(folder)[0], load(folder)[0], first) == pytest.approx(alone, rel=1e-3)


def test_repair_with_it_brings_blocks_closer_to_the_dense_ones(llava_folder, tiny_data, tmp_path):
    ressa.prune(llava_folder, tmp_path / "pruned", data=tiny_data, method="wanda", samples=8)
    errors = {}
    for weight in (0.0, 3.0):
        out = tmp_path / str(weight)
        ressa.repair(
            tmp_path / "pruned", out, teacher=llava_folder, data=tiny_data, steps=20, batch_size=4, hidden_weight=weight
        )
        model, processor = load(out)
        batches = samples(tiny_data, processor, model.config, 8, split="test")
        found = block_errors(model, load(llava_folder)[0], batches)
        errors[weight] = sum(found.values())
    assert errors[3.0] < 0.9 * errors[0.0]


def test_a_negative_weight_is_refused(llava_folder, tiny_data, tmp_path):
    with pytest.raises(RessaError, match=r"hidden_weight: -1\.0 must be at least 0"):
        ressa.repair("nowhere", tmp_path / "out", teacher="nowhere", data=tiny_data, hidden_weight=-1)
