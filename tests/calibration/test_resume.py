"""A prune that was stopped goes on at the block it had reached, and ends with the same bytes."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest

import forked
from ressa import prune, repair
from ressa.allocation.file import write_allocation
from ressa.calibration.resume import FinishedBlocks, stamp
from ressa.errors import RessaError
from ressa.model.load import load
from ressa.model.precision import dtypes_of
from ressa.model.shards import Shards
from ressa.model.streamed import Streamed
from ressa.model.structure import structure

sweep = importlib.import_module("ressa.calibration.sweep")
SMALL = {"samples": 6, "batch_size": 4}


def weights_of(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def stopped(folder, out, at, **settings):
    """A run that is interrupted when block `at` is about to be visited."""

    def tell(done, total, name):
        if done == at and name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(folder, out, progress=tell, **settings)
    assert not out.exists()


@pytest.fixture
def gathered(monkeypatch):
    """The names of the blocks whose inputs are gathered."""
    names, gather = [], sweep.gather
    monkeypatch.setattr(sweep, "gather", lambda visit, *rest: names.append(visit.block.name) or gather(visit, *rest))
    return names


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "wanda"},
        {"method": "sparsegpt", "propagate": "dense"},
        {"method": "admm", "order": "layer", "sparsity": "60%"},
        {"method": "admm", "asymmetric": 1.0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_it_goes_on_where_it_was_and_ends_with_the_same_bytes(
    instructblip_t5_folder, tiny_data, tmp_path, gathered, settings
):
    settings = {"data": tiny_data, **SMALL, **settings}
    prune(instructblip_t5_folder, tmp_path / "whole", **settings)
    every, out = list(dict.fromkeys(gathered)), tmp_path / "out"
    stopped(instructblip_t5_folder, out, 2, **settings)
    stopped(instructblip_t5_folder, out, len(every) - 1, **settings)
    gathered.clear()
    prune(instructblip_t5_folder, out, **settings)
    assert list(dict.fromkeys(gathered)) == every[-1:]
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


def test_with_other_settings_it_begins_anew(llava_folder, tiny_data, tmp_path, gathered):
    settings = {"data": tiny_data, "method": "wanda", **SMALL}
    stopped(llava_folder, tmp_path / "out", 2, **settings)
    first = gathered[0]
    gathered.clear()
    prune(llava_folder, tmp_path / "out", **settings | {"seed": 1})
    assert gathered[0] == first


def refused(*args):
    raise RessaError("no")


def test_a_run_that_is_refused_at_its_first_block_leaves_nothing(llava_folder, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "gather", refused)
    with pytest.raises(RessaError, match="no"):
        prune(llava_folder, tmp_path / "new" / "out", data=tiny_data, method="wanda", **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_refused_later_keeps_what_is_finished(llava_folder, tiny_data, tmp_path, monkeypatch, gathered):
    settings = {"data": tiny_data, "method": "wanda", **SMALL}
    stopped(llava_folder, tmp_path / "out", 2, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "gather", refused)
        with pytest.raises(RessaError, match="no"):
            prune(llava_folder, tmp_path / "out", **settings)
    gathered.clear()
    assert prune(llava_folder, tmp_path / "out", **settings)["resumed_blocks"] == 2


def test_another_allocation_in_the_same_file_begins_anew(llava_folder, tiny_data, tmp_path, gathered):
    model, _ = load(llava_folder)
    names = [block.name for block in structure(model).blocks(["vision", "language"])]
    file = tmp_path / "shares.json"
    settings = {"data": tiny_data, "method": "wanda", "allocation": file, **SMALL}
    write_allocation(file, {"unit": "block", "sparsity": dict.fromkeys(names, 0.7)})
    stopped(llava_folder, tmp_path / "out", 2, **settings)
    write_allocation(file, {"unit": "block", "sparsity": dict.fromkeys(names, 0.3)})
    manifest = prune(llava_folder, tmp_path / "out", **settings)
    assert "resumed_blocks" not in manifest
    assert manifest["together"]["sparsity"] == pytest.approx(0.3, abs=0.01)


def test_another_chat_template_begins_anew(llava_folder, tmp_path):
    folder = shutil.copytree(llava_folder, tmp_path / "model")
    before = stamp(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0] }}")
    assert stamp(folder) != before


def filled(folder, net):
    folder.mkdir(exist_ok=True)
    blocks = structure(net).blocks()
    return FinishedBlocks(Shards(folder, net, dtypes_of(net), blocks), Streamed(net)), blocks[0]


def test_a_block_whose_bytes_are_not_those_that_were_written_is_not_taken_for_finished(llava_folder, tmp_path):
    net, _ = load(llava_folder)
    ours, block = filled(tmp_path / "work", net)
    assert not ours.has(block)
    ours.keep(block)
    assert ours.has(block)
    assert filled(tmp_path / "work", net)[0].has(block)
    file, journal = tmp_path / "work" / "model.safetensors", tmp_path / "work" / "finished.jsonl"
    journal.write_text(journal.read_text() + '{"block": "cut sho')
    assert filled(tmp_path / "work", net)[0].has(block)
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    end = next(told["data_offsets"][1] for key, told in header.items() if "encoder.layers.0.mlp.fc1.weight" in key)
    file.write_bytes(whole[: start + end - 4] + b"ruin" + whole[start + end :])
    assert not filled(tmp_path / "work", net)[0].has(block)


def test_a_block_that_cannot_be_written_is_one_line(llava_folder, tmp_path):
    ours, block = filled(tmp_path / "work", load(llava_folder)[0])
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(RessaError, match=r"cannot be kept there \("):
        ours.keep(block)


def pruned_until_it_is_killed(*folders, **settings):
    def tell(done, total, name):
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    prune(*folders, **settings, progress=tell)


def test_a_killed_command_goes_on(llava_folder, tiny_data, tmp_path):
    settings = {"data": tiny_data, "method": "sparsegpt", **SMALL}
    act = partial(pruned_until_it_is_killed, llava_folder, tmp_path / "out", **settings)
    child = forked.Forked(tmp_path / "said.txt", act)
    assert child.wait() == -signal.SIGKILL, child.text()
    finished = (tmp_path / ".out.prune" / "finished.jsonl").read_text()
    assert [json.loads(line)["block"] for line in finished.splitlines()][:2] == [
        "model.vision_tower.encoder.layers.0",
        "model.vision_tower.encoder.layers.1",
    ]
    assert prune(llava_folder, tmp_path / "out", **settings)["resumed_blocks"] == 2
    prune(llava_folder, tmp_path / "whole", **settings)
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")


def test_a_second_run_on_the_same_output_is_refused_and_the_first_keeps_its_work(llava_folder, tiny_data, tmp_path):
    prune(llava_folder, tmp_path / "pruned", method="magnitude")
    work = [tmp_path / ".out.prune", tmp_path / ".out.train"]
    for folder in work:
        folder.mkdir()
        (folder / "block").write_text("hours of it")
    code = (
        "import fcntl, os, sys\n"
        "for name in sys.argv[1:]: fcntl.flock(os.open(name, os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, *map(str, work)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RessaError, match=r"\.out\.prune: another run is at work there; wait for it"):
            prune(llava_folder, tmp_path / "out", data=tiny_data, method="wanda", **SMALL)
        with pytest.raises(RessaError, match=r"\.out\.train: another run is at work there; wait for it"):
            repair(tmp_path / "pruned", tmp_path / "out", teacher=llava_folder, data=tiny_data, steps=1)
        other.communicate("")
    assert all((folder / "block").read_text() == "hours of it" for folder in work)
    prune(llava_folder, tmp_path / "out", data=tiny_data, method="wanda", **SMALL)
    assert not work[0].exists()
