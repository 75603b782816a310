"""The cached teacher beside the live one, and what a cache refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from test_repair import bytes_of, prune_by_magnitude, weights

import ressa
from ressa.data.prompts import encode
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.repairing import stages
from ressa.repairing.hidden import connector_end, distilled_blocks
from ressa.repairing.teacher import Recorder, Teacher, write_cache
from ressa.repairing.trainer import Objective

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_llama", "instructblip_t5"]
CROSSING = {"blip2_t5": (0, 0), "instructblip_t5": (0, 0)}


@pytest.fixture(scope="module")
def pruned(llava_folder, tmp_path_factory):
    return prune_by_magnitude(llava_folder, tmp_path_factory.mktemp("pruned") / "llava")


@pytest.fixture
def run(pruned, llava_folder, tiny_data, tmp_path):
    def run(name: str = "out", **changes):
        settings = {"teacher": llava_folder, "data": tiny_data, "steps": 6, "batch_size": 4, "rank": 4} | changes
        return ressa.repair(settings.pop("pruned", pruned), tmp_path / name, **settings)

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_cached_record_by_record_is_what_the_teacher_says_of_any_batch(family, request, tiny_data, tmp_path):
    model, processor = load(request.getfixturevalue(f"{family}_folder"))
    records = read_records(tiny_data)
    parts = structure(model)
    teacher = Teacher(model, "cpu", [*distilled_blocks(parts), *connector_end(parts)], bf16=False)
    objective = Objective(0.5, 2.0, False, CROSSING.get(family))
    recorder = Recorder(teacher, processor, objective.asking, top_k=10_000, temperature=2.0)
    cache = write_cache(tmp_path / "cache", {}, recorder, records, batch_size=3, share=5)
    chosen = [7, 0, 4]
    batch = encode(processor, [records[i] for i in chosen], model.config, answers=True)
    inputs, positions_BT = objective.asking(batch)
    live, kept = teacher(inputs, positions_BT), cache(chosen)
    expected = (live.logits_NV / 2.0).log_softmax(-1).gather(-1, kept.words_NK)
    torch.testing.assert_close(kept.top_NK, expected, rtol=1e-3, atol=1e-3)
    assert kept.outputs.keys() == live.outputs.keys()
    for block in teacher.blocks:
        (mine,), (other,) = ([give() for give in said.outputs[block.name]] for said in (kept, live))
        if block.part == "language":  # what stands at padding counts nowhere
            decoder = block.stack == "decoder" and family in CROSSING
            mask = batch["labels"] != -100 if decoder else batch["attention_mask"].bool()
            mine, other = mine[mask], other[mask]
        torch.testing.assert_close(mine.float(), other.float(), rtol=0.01, atol=0.02)


@pytest.mark.parametrize(("top_k", "tolerance"), [(10_000, 0.02), (64, 0.25)])
def test_a_cached_teacher_gives_the_merged_weights_of_a_live_one(run, pruned, tmp_path, top_k, tolerance):
    run("live", connector_weight=0.5)
    run("cached", connector_weight=0.5, teacher_cache=tmp_path / "cache", top_k=top_k)
    old, live, cached = (weights(folder) for folder in (pruned, tmp_path / "live", tmp_path / "cached"))
    moved = sum((live[name] - old[name]).square().sum() for name in old).sqrt()
    apart = sum((live[name] - cached[name]).square().sum() for name in old).sqrt()
    assert moved > 0
    # the pico model is random: of its 400 words, nearly equally likely, 64 tell little; a trained one knows its mind
    assert apart < tolerance * moved, f"{apart / moved:.4f} of the way that training went"
    for name in old:
        assert torch.equal(cached[name] == 0, live[name] == 0)


def test_a_cache_is_written_once_and_read_without_the_teacher(run, llava_folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    run("first", teacher_cache=cache)
    stamps = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    monkeypatch.setattr(stages, "Teacher", None)  # whoever makes one now fails
    run("second", teacher_cache=cache)
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == stamps
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "first", "second"}


def test_the_same_teacher_in_another_folder_fits_the_cache_and_another_one_does_not(run, llava_folder, tmp_path):
    cache = tmp_path / "cache"
    run("first", teacher_cache=cache, steps=1)
    moved = shutil.copytree(llava_folder, tmp_path / "moved")
    run("second", teacher_cache=cache, steps=1, teacher=moved)
    model, processor = load(moved)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    for changes, what in (
        ({"teacher": tmp_path / "other"}, "another teacher;"),
        ({"samples": 5}, "another data;"),
        ({"top_k": 3, "temperature": 1.0}, "another top_k, temperature;"),
        ({"hidden_weight": 0.0}, "another hidden states, connector;"),
    ):
        with pytest.raises(RessaError, match=what):
            run("third", teacher_cache=cache, steps=1, **changes)


def test_a_folder_that_is_no_cache_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(RessaError, match="is no teacher's cache, and not empty"):
        run(teacher_cache=tmp_path / "mine")
    (tmp_path / "mine" / "about.json").write_text("{")
    with pytest.raises(RessaError, match="cannot be read; delete"):
        run(teacher_cache=tmp_path / "mine")
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["mine"]'


def test_the_connector_can_be_distilled_alone_and_a_teacher_can_be_on_a_named_device(run):
    more = {"kl_weight": 0.0, "hidden_weight": 0.0, "steps": 20, "lr": 3e-3}
    where: dict = {0.0: {}, 5.0: {"teacher_device": "cpu"}}  # without any weight there is no teacher
    told = {w: run(str(w), connector_weight=w, **where[w], **more)["history"] for w in where}
    far = [a["loss"] - b["loss"] for a, b in zip(told[5.0], told[0.0], strict=True)]
    assert far[0] > 0
    assert far[-1] < 0.7 * far[0]
