"""Repair in processes of its own: several at once, and killed in the middle."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_repair import assert_same_zeros, bytes_of, prune_by_magnitude, weights

import ressa

pytestmark = pytest.mark.slow  # each process spends seconds on imports
TOLERANCE = 1e-4  # of a loss: sums of float32 in another order


@pytest.fixture(scope="module")
def pruned(llava_folder, tmp_path_factory) -> Path:
    return prune_by_magnitude(llava_folder, tmp_path_factory.mktemp("pruned") / "llava")


def environment() -> dict[str, str]:
    source = str(Path(ressa.__file__).parents[1])
    return os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def words(pruned, out, teacher, data, *more) -> list[str]:
    told = ["repair", pruned, out, "--teacher", teacher, "--data", data, "--rank", 4, *more]
    return [str(word) for word in told]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def two_processes() -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launch, "--main_process_port", free_port(), "--main_process_ip", "127.0.0.1"]


@pytest.mark.parametrize("adapter", ["sparse-lora", "masked-ft"])
def test_two_processes_give_the_losses_of_one_with_a_doubled_batch(adapter, pruned, llava_folder, tiny_data, tmp_path):
    common = ["--steps", 6, "--adapter", adapter, "--connector-weight", "0.5"]
    launch = [*two_processes(), "-m", "ressa.cli"]
    told = words(pruned, tmp_path / "two", llava_folder, tiny_data, "--batch-size", 3, *common)
    done = subprocess.run([*launch, *told], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    settings = {"steps": 6, "batch_size": 6, "rank": 4, "adapter": adapter, "connector_weight": 0.5}
    one = ressa.repair(pruned, tmp_path / "one", teacher=llava_folder, data=tiny_data, **settings)
    two = json.loads((tmp_path / "two" / "ressa.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    losses = [[entry["loss"] for entry in run["history"]] for run in (one, two)]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE)
    assert_same_zeros(pruned, tmp_path / "two")


@pytest.mark.parametrize("adapter", ["sparse-lora", "lora", "masked-ft"])
def test_two_processes_that_share_the_parameters_repair_as_one_with_a_doubled_batch(
    adapter, pruned, llava_folder, tiny_data, tmp_path
):
    settings = {"steps": 4, "adapter": adapter, "gradient_checkpointing": True, "checkpoint_every": 2}
    settings |= {} if adapter == "masked-ft" else {"rank": 4}
    script = str(Path(__file__).parents[1].joinpath("sharded_repair.py"))
    told = [pruned, tmp_path / "two", llava_folder, tiny_data, json.dumps(settings | {"batch_size": 3})]
    call = [*two_processes(), script, *map(str, told)]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("holds 0.5") == 2
    one = ressa.repair(pruned, tmp_path / "one", teacher=llava_folder, data=tiny_data, **settings, batch_size=6)
    two = json.loads((tmp_path / "two" / "ressa.json").read_text())
    losses = [[entry["loss"] for entry in run["history"]] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE)
    if adapter != "lora":
        assert_same_zeros(pruned, tmp_path / "two")
        for name, whole in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(tmp_path / "two")[name], whole, rtol=0, atol=1e-4)


def test_sparse_lora_under_fsdp2_has_the_gradients_of_one_process():
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    script = str(Path(__file__).parents[1].joinpath("sharded.py"))
    done = subprocess.run([*launch, script], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compared 12") == 2  # A and B of three linears in two blocks


def test_a_run_killed_at_three_random_steps_ends_with_the_same_bytes(pruned, llava_folder, tiny_data, tmp_path):
    code = (
        "import sys, time, ressa\n"
        "def tell(done, total, what):\n"
        "    print(done, flush=True); time.sleep(0.05)\n"  # so that a kill hits the step that was chosen
        "ressa.repair(sys.argv[1], sys.argv[2], teacher=sys.argv[3], data=sys.argv[4], steps=30, batch_size=4, rank=4,"
        " dropout=0.1, checkpoint_every=2, progress=tell)\n"
    )
    call = [sys.executable, "-c", code, *map(str, (pruned, tmp_path / "out", llava_folder, tiny_data))]
    common = {"steps": 30, "batch_size": 4, "rank": 4, "dropout": 0.1}
    ressa.repair(pruned, tmp_path / "whole", teacher=llava_folder, data=tiny_data, **common)
    for stop in sorted(random.Random(time.time_ns()).sample(range(3, 29), 3)):
        with subprocess.Popen(call, env=environment(), stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= stop:
                    child.send_signal(signal.SIGKILL)
                    break
        assert child.returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    subprocess.run(call, env=environment(), check=True, stdout=subprocess.DEVNULL)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))
