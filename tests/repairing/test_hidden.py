"""Hidden-state distillation: nothing where nothing differs, no padding, and it pulls blocks back."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import ressa
from ressa.calibration.logits import decoder_token_ids, forced, logits_at
from ressa.calibration.outputs import outputs_of
from ressa.calibration.samples import samples
from ressa.calibration.tokens import token_weights
from ressa.data.prompts import encode
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.evaluation.blocks import block_errors
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.repairing import objective as module
from ressa.repairing.distill import answer_cross_entropy, answer_kl
from ressa.repairing.hidden import connector_end, distances_taken, distilled_blocks, hidden_loss
from ressa.repairing.objective import Objective
from ressa.repairing.recompute import recomputed
from ressa.repairing.teacher import Teacher


def told(student, teacher, batch):
    """The loss of one batch."""
    blocks, originals = (structure(model).blocks(("vision", "language")) for model in (student, teacher))
    with torch.no_grad():
        with outputs_of(originals) as theirs:
            teacher(**batch, use_cache=False)
        given = {name: [partial(torch.clone, y) for y in calls] for name, calls in theirs.items()}
        with distances_taken(blocks, given, token_weights(batch, student.config)) as taken:
            student(**batch, use_cache=False)
        return hidden_loss(taken, blocks).item()


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


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole_loss(model, dense, objective, batch):
    """The loss as the documentation has it, with all outputs of both models at hand and everything in the graph."""
    asked, positions_BT = objective.asking(batch)
    targets_N = forced(batch, objective.decoder_token_ids)[1][positions_BT]
    with torch.no_grad(), outputs_of(Teacher(dense, "cpu", objective.blocks, bf16=False).blocks) as theirs:
        teacher_NV = logits_at(dense, asked, positions_BT)
    with outputs_of(objective.blocks) as ours:
        student_NV = logits_at(model, asked, positions_BT)
    loss = 0.5 * answer_cross_entropy(student_NV, targets_N) + 0.5 * answer_kl(student_NV, teacher_NV, 2.0)
    weights = token_weights(batch, model.config)
    for weight, blocks in objective.distances:
        shares = []
        for block in blocks:
            pairs = zip(ours[block.name], theirs[block.name], strict=True)
            far, size = (sum(sums) for sums in zip(*(_squares(*pair, weights, block) for pair in pairs), strict=True))
            shares.append(far / size)
        loss = loss + weight * sum(shares) / len(shares)
    return loss


def _squares(ours, dense, weights, block):
    counts_BT = weights.of(block, block.name, dense, crossed=False)
    counts_BT = ours.new_ones(ours.shape[:-1]) if counts_BT is None else counts_BT
    return ((ours - dense) ** 2).sum(-1).mul(counts_BT).sum(), (dense**2).sum(-1).mul(counts_BT).sum()


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_distances_taken_block_by_block_have_loss_and_gradients_of_all_outputs_at_once(
    folder, again, tiny_data, monkeypatch
):
    (model, processor), dense = shrunk(folder), load(folder)[0].double()
    model.double()
    parts = structure(model)
    distances = [(100.0, distilled_blocks(parts)), (30.0, connector_end(parts))]
    distances = [(weight, blocks) for weight, blocks in distances if blocks]
    objective = Objective(0.5, 2.0, False, decoder_token_ids(model.config), distances)
    batch = encode(processor, read_records(tiny_data, "train")[:3], model.config, answers=True)
    batch = {key: x.double() if x.is_floating_point() else x for key, x in batch.items()}
    expected = whole_loss(model, dense, objective, batch)
    wanted = gradients(model, expected)
    monkeypatch.setattr(module, "CHUNK", 3 * model.config.get_text_config().vocab_size)  # positions by threes
    asked, positions_BT = objective.asking(batch)
    said = Teacher(dense, "cpu", objective.blocks, bf16=False)(asked, positions_BT)
    with recomputed(parts.blocks() if again else (), model):
        with distances_taken(objective.blocks, said.outputs, token_weights(batch, model.config)) as taken:
            loss = objective.loss(logits_at(model, asked, positions_BT), said, batch, positions_BT)
        loss = loss + sum(weight * hidden_loss(taken, blocks) for weight, blocks in distances)
        found = gradients(model, loss)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-10, msg=name)


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
