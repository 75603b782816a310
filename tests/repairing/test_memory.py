"""Repair in less memory is the same repair: frozen matrices as they are stored, batches in parts, what is chosen."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest
import torch
from test_repair import assert_same_zeros, bytes_of, prune_by_magnitude, settings_of, weights

import ressa
from ressa import machine
from ressa.data.records import read_records
from ressa.errors import RessaError, RessaWarning
from ressa.model.load import load
from ressa.model.precision import matrices_of, widened
from ressa.repairing import memory, stages, student, teacher
from ressa.repairing.student import student_of, wrap

pytestmark = pytest.mark.formats


@pytest.fixture(scope="module")
def pruned(llava_folder, tmp_path_factory):
    return prune_by_magnitude(llava_folder, tmp_path_factory.mktemp("pruned") / "llava")


@pytest.fixture(scope="module")
def half(llava_folder, tmp_path_factory):
    """The same in bfloat16."""
    return prune_by_magnitude(llava_folder, tmp_path_factory.mktemp("half") / "llava", dtype="bfloat16")


@pytest.fixture
def run(pruned, llava_folder, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "slower", lambda dtype: 1.0)  # no warning where bfloat16 is slow

    def run(name: str = "out", **changes):
        settings = {"teacher": llava_folder, "data": tiny_data, "steps": 4, "batch_size": 4, "rank": 4} | changes
        return ressa.repair(settings.pop("pruned", pruned), tmp_path / name, **settings)

    return run


def losses(told):
    return [entry["loss"] for entry in told["history"]]


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["sparse-lora", "ste", "lora", "masked-ft"])
def test_what_is_trained_is_float32_and_frozen_matrices_are_as_they_are_stored(adapter, half):
    model, _ = load(half)
    settings = settings_of(adapter=adapter, rank=None if adapter == "masked-ft" else 4)
    wrapped = wrap(student_of(model, {}), settings, torch.bfloat16)
    dtypes = {True: set(), False: set()}
    for parameter in model.parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    assert dtypes[True] == {torch.float32}
    frozen = [p for p in matrices_of(model, 2) if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert sum(p.numel() for p in frozen) > 0.5 * sum(p.numel() for p in load(half)[0].parameters())
    assert not wrapped.rounded


@pytest.mark.parametrize("adapter", ["sparse-lora", "masked-ft"])
def test_narrow_matrices_give_the_very_bytes_of_wide_ones_under_autocast(adapter, run, half, tmp_path, monkeypatch):
    common = {"pruned": half, "dtype": "bfloat16", "adapter": adapter, "rank": None if adapter == "masked-ft" else 4}
    narrow = run("narrow", **common)
    for module in (student, teacher):
        monkeypatch.setattr(module, "widened", lambda model, products: widened(model))
    wide = run("wide", **common)
    assert losses(narrow) == losses(wide)
    assert bytes_of(tmp_path / "narrow") == bytes_of(tmp_path / "wide")


def test_a_float32_model_computed_in_bfloat16_keeps_the_bits_of_what_is_not_trained(run, pruned, tmp_path):
    run(dtype="bfloat16", parts="language", train_norms=False, train_connector=False)
    old, new = weights(pruned), weights(tmp_path / "out")
    assert_same_zeros(pruned, tmp_path / "out")
    assert {name for name in old if torch.equal(old[name], new[name])} >= {n for n in old if "vision" in n}
    moved = new["model.language_model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(moved, moved.bfloat16().float()), "added to the stored weight, not to a rounded one"


# ---- blocks computed again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["sparse-lora", "ste", "lora", "masked-ft"])
def test_blocks_computed_again_give_the_very_losses_of_blocks_that_are_kept(adapter, run):
    common = {"adapter": adapter} if adapter == "masked-ft" else {"adapter": adapter, "dropout": 0.1}
    common |= {"rank": None} if adapter == "masked-ft" else {}
    kept, again = (run(str(on), gradient_checkpointing=on, **common) for on in (False, True))
    assert losses(kept) == losses(again)


# ---- micro-batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [{}, {"accumulate": 2}, {"teacher_cache": "said"}], ids=["plain", "accumulated", "cached"]
)
def test_a_batch_in_parts_takes_the_steps_of_the_whole_one(more, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = run("whole", **more)
    parts = run("parts", micro_batch=1, gradient_checkpointing=True, **more)
    assert parts["memory"]["pieces"] == 4
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 3}, "micro_batch 3 does not divide batch_size 4"),
        ({"micro_batch": 2, "objective": "paper"}, "the paper's KL counts padding"),
        ({"optim": "adamw"}, "unknown optim 'adamw'"),
        ({"optim": "paged_adamw_8bit"}, "optim paged_adamw_8bit: bitsandbytes is not installed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(changes, message, run, tmp_path, monkeypatch):
    monkeypatch.setattr("ressa.repairing.trainer.find_spec", lambda name: None)
    with pytest.raises(RessaError, match=message):
        run(**changes)
    assert not list(tmp_path.iterdir())


def test_the_optimiser_is_the_one_that_is_named(run, tmp_path):
    told = [run(name, optim=name) for name in ("adamw_torch", "adamw_torch_fused")]
    assert losses(told[0]) == pytest.approx(losses(told[1]), rel=1e-4)


# ---- what is chosen --------------------------------------------------------------------------------------------------


def test_where_memory_is_short_blocks_are_computed_again_and_then_batches_come_in_parts(run, monkeypatch):
    plenty = run("plenty")
    assert (plenty["memory"]["recompute"], plenty["memory"]["pieces"]) == (False, 1)
    ways = [plenty["memory"]]
    for name in ("short", "shorter"):
        there = ways[-1]["reckoned_bytes"]  # of which nine tenths may be taken
        monkeypatch.setattr(stages, "here", lambda *args, there=there: there)
        with pytest.warns(RessaWarning, match=r"memory is short \(.*iB\): blocks computed again in the backward pass"):
            told = run(name)
        ways.append(told["memory"])
        assert told["memory"]["reckoned_bytes"] <= 0.9 * there
        assert losses(told) == pytest.approx(losses(plenty), rel=1e-4)
    assert ways[1]["recompute"]
    assert ways[2]["pieces"] > 1
    monkeypatch.setattr(stages, "here", lambda *args: 1000)
    with pytest.warns(RessaWarning, match="which is more: take a teacher_cache or an 8-bit optim"):
        run("least")


def test_a_stopped_run_goes_on_in_the_way_in_which_it_began(run, tmp_path, monkeypatch):
    run("whole", steps=8, gradient_checkpointing=True, micro_batch=2)

    def stop_at_6(done: int, total: int, what: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    there = {"steps": 8, "checkpoint_every": 2, "gradient_checkpointing": True}
    least = run("told", **there | {"micro_batch": 2})["memory"]["reckoned_bytes"]
    monkeypatch.setattr(stages, "here", lambda *args: int(least / memory.SHARE) + 1)
    with pytest.raises(KeyboardInterrupt), pytest.warns(RessaWarning, match="batches in 2 parts"):
        run("out", **there, progress=stop_at_6)
    monkeypatch.setattr(stages, "here", lambda *args: None)
    assert run("out", **there)["memory"]["pieces"] == 2
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_cache_that_would_not_fit_the_disk_is_refused_before_the_teacher_is_asked(
    run, tmp_path, monkeypatch, tiny_data
):
    run("out", teacher_cache=tmp_path / "cache")
    size = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.safetensors"))
    free = namedtuple("usage", "free")
    reckoned = []
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda place: free(0))
    monkeypatch.setattr(stages, "write_cache", None)
    monkeypatch.setattr(memory, "format_bytes", lambda n: reckoned.append(n) or "much")
    with pytest.raises(RessaError, match=f"cache of {len(read_records(tiny_data, 'train'))} records would take much"):
        run("other", teacher_cache=tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert reckoned[0] == pytest.approx(size, rel=0.15)
    shutil.rmtree(tmp_path / "cache")


def test_ressa_json_tells_how_a_step_was_carried_out(run, tmp_path):
    run()
    told = json.loads((tmp_path / "out" / "ressa.json").read_text(encoding="utf-8"))["memory"]
    assert told["reckoned_bytes"] > 0
    assert {"there_bytes", "recompute", "pieces", "teacher", "width"} <= told.keys()
