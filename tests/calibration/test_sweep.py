"""The sweep over blocks: who is on the way to the mask, and which linears and blocks get a turn."""

from __future__ import annotations

import inspect
import json

import pytest
from safetensors.torch import load_file

import ressa
from ressa.calibration.data import CalibrationData
from ressa.calibration.resume import FinishedBlocks
from ressa.calibration.sweep import DENSE, sweep
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.methods import METHODS
from ressa.methods.magnitude import magnitude
from ressa.model.load import load
from ressa.model.precision import dtypes_of
from ressa.model.shards import Shards
from ressa.model.streamed import Streamed
from ressa.model.structure import structure
from ressa.statistics import Gram, needs

SMALL = {"samples": 6, "batch_size": 4}


@pytest.fixture
def data(llava_folder, tiny_data):
    net, processor = load(llava_folder)
    made = CalibrationData(net, processor, read_records(tiny_data, "train"), **SMALL)
    return made.over(structure(net).blocks(("vision", "language")))


def test_a_method_is_three_calls_below_the_user(llava_folder, tiny_data, tmp_path, monkeypatch):
    called: list[list[str]] = []

    @needs(Gram)
    def look(weight_OI, inputs, pattern):
        called.append([frame.function for frame in inspect.stack() if "/ressa/" in frame.filename][::-1])
        return magnitude(weight_OI, None, pattern)

    monkeypatch.setitem(METHODS, "look", look)
    ressa.prune(llava_folder, tmp_path / "out", data=tiny_data, method="look", **SMALL)
    assert {tuple(names[1:]) for names in called} == {("prune", "prune_block")}  # below the door; the method is third


def test_only_the_linears_that_change_have_a_turn_and_blocks_without_any_are_passed_through(data):
    block = data.blocks[2]
    chosen = set(list(block.linears)[1:3])
    turns = [(turn.block.name, turn.linears, list(turn.inputs)) for turn in sweep(data, Gram, DENSE, chosen)]
    assert turns == [(block.name, sorted(chosen, key=list(block.linears).index), turns[0][2])]
    assert set(turns[0][2]) == chosen


def test_a_turn_is_empty_once_it_is_over(data):
    turns = list(sweep(data, Gram))
    assert [turn.block for turn in turns] == list(data.blocks)
    assert not any(turn.inputs or turn.visit for turn in turns)


def test_without_data_every_block_has_its_turn_and_is_told_of(data):
    heard = []
    blind = CalibrationData(data.net, None, None, progress=lambda *args: heard.append(args), blocks=data.blocks)
    turns = list(sweep(blind, None))
    assert [list(turn.inputs) for turn in turns] == [list(block.linears) for block in data.blocks]
    assert [name for _, _, name in heard] == [*(block.name for block in data.blocks), ""]


def test_a_block_that_no_record_enters_is_refused_and_nothing_is_kept_for_another_run(data, tmp_path):
    for batch in data.batches:  # as text alone
        del batch["pixel_values"]
        batch["input_ids"].fill_(5)
    folder = tmp_path / "kept"
    folder.mkdir()
    finished = FinishedBlocks(Shards(folder, data.net, dtypes_of(data.net), data.blocks), Streamed(data.net))
    with pytest.raises(RessaError, match=f"no calibration record enters {data.blocks[0].name}: add records"):
        for _ in sweep(data, Gram, finished=finished):
            pass
    assert not folder.exists()


def test_an_allocation_of_some_linears_of_a_block_leaves_the_others_dense(llava_folder, tiny_data, tmp_path):
    names = list(structure(load(llava_folder)[0]).blocks(("language",))[0].linears)
    file = tmp_path / "shares.json"
    file.write_text(json.dumps({"unit": "linear", "sparsity": {names[0]: 0.5}}))
    for method in ("magnitude", "wanda"):
        told = ressa.prune(llava_folder, tmp_path / method, data=tiny_data, method=method, allocation=file, **SMALL)
        assert [name for name, entry in told["matrices"].items() if entry["zeros"]] == names[:1]


def test_an_asymmetric_target_counts_the_patch_embedding_as_a_block(llava_folder, tiny_data, tmp_path):
    settings = {"data": tiny_data, "method": "sparsegpt", "sparsity": "50%", "patch_embedding": True, **SMALL}
    weights = []
    for way in (0.0, 1.0):
        ressa.prune(llava_folder, tmp_path / str(way), asymmetric=way, **settings)
        weights.append(load_file(tmp_path / str(way) / "model.safetensors"))
    patches = next(name for name in weights[0] if "patch_embedding" in name)
    assert weights[0][patches].equal(weights[1][patches]), "before it nothing was pruned"
    assert not all(weights[0][name].equal(weights[1][name]) for name in weights[0])
