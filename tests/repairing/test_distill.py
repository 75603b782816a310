"""The adaptation losses against the definitions, and the chosen logits against a plain forward of every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from ressa.calibration.logits import decoder_inputs, logits_at, targets
from ressa.data.prompts import IGNORED, encode, is_encoder_decoder
from ressa.data.records import Record, read_records
from ressa.repairing.distill import answer_cross_entropy, answer_kl, paper_kl, top_kl, top_words
from ressa.repairing.teacher import TeacherOutput
from ressa.repairing.trainer import Objective

SEEING = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama"]


def distributions(n=6, v=11, dtype=torch.float32):
    torch.manual_seed(0)
    return (2 * torch.randn(n, v)).to(dtype).requires_grad_(), (2 * torch.randn(n, v)).to(dtype)


@pytest.fixture(params=[*SEEING, "causal_lm"])
def family(request, tiny_data):
    """(model, batch with labels) of one pico model."""
    folder = request.getfixturevalue(f"{request.param}_folder")
    seeing = request.param in SEEING
    model = (AutoModelForImageTextToText if seeing else AutoModelForCausalLM).from_pretrained(folder)
    processor = (AutoProcessor if seeing else AutoTokenizer).from_pretrained(folder)
    records = read_records(tiny_data)[:3]
    records[0] = dataclasses.replace(records[0], answers=("a red square above a circle",))
    return model.eval(), encode(processor, records, model.config, answers=True)


def chosen(model, batch):
    """Inputs, positions and targets as the repair uses them."""
    inputs = dict(batch)
    labels, encoder_decoder = inputs.pop("labels"), is_encoder_decoder(model.config)
    if encoder_decoder:
        inputs["decoder_input_ids"] = decoder_inputs(labels, start=0, pad=0)
    wanted = targets(labels, encoder_decoder=encoder_decoder)
    return inputs, wanted != IGNORED, wanted[wanted != IGNORED]


def test_the_chosen_logits_are_those_of_the_whole_forward(family):
    model, batch = family
    inputs, positions, _ = chosen(model, batch)
    with torch.no_grad():
        torch.testing.assert_close(logits_at(model, inputs, positions), model(**inputs).logits[positions])
    assert 0 < positions.sum() < positions.numel()


def test_the_cross_entropy_is_the_loss_the_model_itself_reports(family):
    model, batch = family
    inputs, positions, wanted = chosen(model, batch)
    with torch.no_grad():
        mine = answer_cross_entropy(logits_at(model, inputs, positions), wanted)
        torch.testing.assert_close(mine, model(**batch).loss)


def test_logits_at_leaves_the_model_as_it_was_even_when_the_forward_fails(family):
    model, batch = family
    inputs, positions, _ = chosen(model, batch)
    with pytest.raises(IndexError):
        logits_at(model, inputs, positions[:, :-1])
    assert model(**inputs).logits.ndim == 3


def test_padding_changes_neither_loss(llava_folder, tiny_data):
    model = AutoModelForImageTextToText.from_pretrained(llava_folder).eval()
    processor = AutoProcessor.from_pretrained(llava_folder)
    record = read_records(tiny_data)[0]
    losses = []
    for longer in ([], [Record(id="long", question="How many? " * 9, answers=("x",), image=record.image)]):
        batch = encode(processor, [record, *longer], model.config, answers=True)
        batch["labels"][1:] = IGNORED
        inputs, positions, wanted = chosen(model, batch)
        with torch.no_grad():
            logits = logits_at(model, inputs, positions)
        losses.append(torch.stack([answer_cross_entropy(logits, wanted), answer_kl(logits, logits.flip(1))]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_kl_is_the_definition_averaged_over_tokens_and_not_turned_round():
    student, teacher = distributions()
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(answer_kl(student, teacher), (p * (p / q).log()).sum(-1).mean())
    assert not torch.isclose(answer_kl(student, teacher), answer_kl(teacher, student))
    assert answer_kl(teacher, teacher).abs() < 1e-6


def test_temperature_softens_both_and_its_square_keeps_the_gradient_alive():
    student, teacher = distributions()
    torch.testing.assert_close(answer_kl(student, teacher, 3.0), 9 * answer_kl(student / 3, teacher / 3))
    sizes = [torch.autograd.grad(answer_kl(student, teacher, t), student)[0].norm() for t in (100.0, 1000.0)]
    torch.testing.assert_close(*sizes, rtol=0.05, atol=0)


def test_the_weight_runs_from_pure_cross_entropy_to_pure_kl():
    student, teacher = distributions()
    batch = {"labels": torch.arange(6)[None]}
    everywhere = torch.ones(1, 6, dtype=torch.bool)

    def loss(kl_weight):
        objective = Objective(kl_weight, 1.0, False, decoder_token_ids=(0, 0))
        return objective.loss(student, TeacherOutput(teacher), batch, everywhere)

    torch.testing.assert_close(loss(0.0), functional.cross_entropy(student, torch.arange(6)))
    torch.testing.assert_close(loss(1.0), answer_kl(student, teacher))
    torch.testing.assert_close(loss(0.25), 0.75 * loss(0.0) + 0.25 * loss(1.0))


def test_the_kl_over_the_likeliest_words_is_exact_for_all_words_and_a_lower_bound_for_some():
    student, teacher = distributions(v=50)
    whole = answer_kl(student, teacher, 2.0)
    torch.testing.assert_close(top_kl(student, *top_words(teacher, 50, 2.0), temperature=2.0), whole)
    bounds = [top_kl(student, *top_words(teacher, k, 2.0), temperature=2.0) for k in (2, 10, 40, 49)]
    assert sorted(bounds) == bounds
    assert bounds[-1] <= whole + 1e-6
    assert bounds[-2] > 0.9 * whole
    exact, near = (torch.autograd.grad(loss, student)[0] for loss in (whole, bounds[-2]))
    assert functional.cosine_similarity(exact.flatten(), near.flatten(), dim=0) > 0.99


def test_the_kl_over_the_likeliest_words_is_0_for_the_teacher_itself_and_finite_when_they_are_all_there_is():
    _, teacher = distributions(v=50)
    assert top_kl(teacher, *top_words(teacher, 7, 1.0)).abs() < 1e-5
    sure = torch.full((3, 50), -1e4).index_fill(1, torch.tensor([4]), 0.0)
    student = (2 * torch.randn(3, 50)).requires_grad_()
    torch.testing.assert_close(top_kl(student, *top_words(sure, 5, 1.0)), answer_kl(student, sure))
    assert torch.autograd.grad(top_kl(student, *top_words(sure, 5, 1.0)), student)[0].isfinite().all()


def test_bfloat16_logits_are_compared_in_float32():
    student, teacher = distributions(dtype=torch.bfloat16)
    assert answer_kl(student, teacher).dtype == torch.float32
    torch.testing.assert_close(answer_kl(student, teacher), answer_kl(student.float(), teacher.float()))
    wanted = torch.arange(6)
    torch.testing.assert_close(answer_cross_entropy(student, wanted), answer_cross_entropy(student.float(), wanted))


def test_the_paper_kl_is_batchmean_over_every_position():
    student, teacher = distributions(n=12)
    as_released = functional.kl_div(
        student.view(3, 4, -1).log_softmax(-1), teacher.view(3, 4, -1).log_softmax(-1), None, None, "batchmean", True
    )
    torch.testing.assert_close(paper_kl(student, teacher, 3), as_released)


def test_positions_without_an_answer_do_not_count_in_the_cross_entropy():
    student, _ = distributions()
    wanted = torch.tensor([3, IGNORED, 4, IGNORED, IGNORED, 5])
    torch.testing.assert_close(answer_cross_entropy(student, wanted), functional.cross_entropy(student, wanted))
    assert answer_cross_entropy(student, torch.full((6,), IGNORED)) == 0


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_targets_stand_where_their_logits_are(encoder_decoder):
    labels = torch.tensor([[IGNORED, 5, 6, IGNORED]])
    expected = [[IGNORED, 5, 6, IGNORED]] if encoder_decoder else [[5, 6, IGNORED, IGNORED]]
    assert targets(labels, encoder_decoder=encoder_decoder).tolist() == expected
