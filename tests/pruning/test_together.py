"""Several processes prune as one does, byte for byte, and end together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import pico
import ressa
from team import team

SMALL = {"samples": 11, "batch_size": 2}  # six batches: with four processes two have one, two have two
EQUAL: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {  # model, settings, with how many processes
    "wanda": ("llava", {"method": "wanda"}, (2, 4)),
    "sparsegpt": ("llava", {"method": "sparsegpt", "token_weights": "image=0.3"}, (2, 4)),
    "admm": ("instructblip_t5", {"method": "admm", "propagate": "dense"}, (2, 4)),
    "magnitude": ("llava", {"method": "magnitude", "shard_size": "100K"}, (2, 4)),
    "more processes than batches": ("llava", {"method": "dsnot+refit", "samples": 3, "sparsity": "50%"}, (4,)),
    "layer by layer": ("instructblip_t5", {"method": "wanda", "order": "layer"}, (2,)),
    "asymmetric": ("instructblip_llama", {"method": "sparsegpt", "asymmetric": 0.5}, (2,)),
    "owl": ("llava", {"method": "wanda", "allocation": "owl", "sparsity": "50%", "activations": "disk"}, (2,)),
    "ecoflap": ("llava", {"method": "wanda", "allocation": "ecoflap", "sparsity": "50%"}, (2,)),
    "ecoflap-zeroth": ("llava", {"method": "wanda", "allocation": "ecoflap-zeroth", "sparsity": "50%"}, (3,)),
    "keep_dense": ("llava", {"method": "wanda", "keep_dense": 1}, (2,)),
    "experts": ("moe", {"method": "sparsegpt"}, (2,)),
    "bfloat16": ("half", {"method": "sparsegpt"}, (2,)),
    "gradient": ("llava", {"method": "wanda", "token_weights": "gradient"}, (2,)),
}
QUICK = [("wanda", 2), ("wanda", 4), ("sparsegpt", 2), ("magnitude", 2)]
ALL = [(name, size) for name, (*_, sizes) in EQUAL.items() for size in sizes]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in QUICK]
BREAKS = {  # what goes wrong, in which process; what both say
    "solve": (1, "no damping helps"),
    "product": (1, "another process has ended"),
    "write": (0, "cannot be kept there"),
    "start": (1, "process 1 failed: ValueError: a fault"),
}


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory) -> Path:
    """Every third record has no picture: its batch may pass no vision block."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copytree(tiny_data / "images", root / "images")
    lines = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    for record in lines[::3]:
        del record["image"]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def moe(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    words = pico.tokenizer()
    config = Qwen3MoeConfig(vocab_size=len(words), num_experts=4, num_experts_per_tok=2, **sizes)
    return pico._save(folder, Qwen3MoeForCausalLM, config, words)


def half(folder: Path) -> Path:
    made = pico.llava(folder)
    net, processor = ressa.load(made)
    net.bfloat16().save_pretrained(made)
    processor.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    root = tmp_path_factory.mktemp("teams")
    models = {name: getattr(pico, name)(root / name) for name in ("llava", "instructblip_t5", "instructblip_llama")}
    return root, models | {"moe": moe(root / "moe"), "half": half(root / "half")}


@pytest.fixture(scope="module")
def pruned(made, data, tiny_data) -> tuple[Path, dict[str, list[str]]]:
    """The folder with an output for each name and number of processes, and what their processes ended with."""
    root, models = made
    jobs = equal(QUICK, root, models, data, tiny_data)
    for what, (rank, _) in BREAKS.items():
        told = {"model": str(models["llava"]), "data": str(data), "method": "sparsegpt"} | SMALL
        jobs[what] = told | {"processes": 2, "out": str(root / what), "break": {"rank": rank, "what": what}}
    resumed = {key: value for key, value in jobs["solve"].items() if key != "break"}
    jobs["resumed"] = resumed  # the same call, after the one that failed in the middle
    return root, in_teams(jobs)


@pytest.fixture(scope="module")
def slowly_pruned(made, data, tiny_data) -> dict[str, list[str]]:
    root, models = made
    return in_teams(equal([case for case in ALL if case not in QUICK], root, models, data, tiny_data))


def equal(cases: list[tuple[str, int]], root: Path, models: dict[str, Path], *data: Path) -> dict[str, Any]:
    jobs = {}
    for name, size in cases:
        model, settings, _ = EQUAL[name]
        told = (
            {"model": str(models[model]), "data": str(data["blip" in model])} | SMALL | settings
        )  # they need pictures
        for processes in (1, size):
            out = root / f"{name}, {processes}"
            if not out.exists():
                jobs[out.name] = told | {"processes": processes, "out": str(out)}
    return jobs


def in_teams(jobs: dict[str, Any]) -> dict[str, list[str]]:
    return {name: team(job) for name, job in jobs.items()}


def weights_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if "safetensors" in file.name}


@pytest.mark.parametrize(("name", "size"), [*QUICK, *SLOW])
def test_several_processes_write_the_bytes_of_one(name, size, pruned, request):
    root, ended = pruned
    if (name, size) not in QUICK:
        ended = ended | request.getfixturevalue("slowly_pruned")
    assert ended[f"{name}, 1"] == [""]
    assert ended[f"{name}, {size}"] == [""] * size
    one, several = (root / f"{name}, {n}" for n in (1, size))
    assert weights_in(one) == weights_in(several)
    told = [json.loads((folder / "ressa.json").read_text()) for folder in (one, several)]
    assert told[0]["matrices"] == told[1]["matrices"]
    assert told[0]["allocation"] == told[1]["allocation"]
    assert [run["processes"] for run in told] == [1, size]


@pytest.mark.parametrize("what", BREAKS)
def test_all_processes_end_when_one_fails_and_say_why(what, pruned):
    rank, line = BREAKS[what]
    root, ended = pruned
    assert line in ended[what][1 - rank]
    if what != "product":
        assert line.split(": ")[-1] in ended[what][rank]
    else:
        assert ended[what][rank] == "killed"
    assert what == "solve" or not (root / what).exists()


def test_processes_go_on_with_the_blocks_that_a_failed_run_had_finished(pruned):
    root, ended = pruned
    assert ended["resumed"] == ["", ""]
    told = json.loads((root / "solve" / "ressa.json").read_text())
    assert told["resumed_blocks"] > 0
    assert not [path for path in root.iterdir() if path.name.startswith(".solve")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launched_processes_tell_the_result_once_and_a_refusal_in_one_line(launcher, pruned, data, tmp_path):
    root, _ = pruned
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    if launcher == "accelerate":
        launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(ressa.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", *launch, "-m", "ressa.cli", "prune", str(root / "llava"), str(tmp_path / "out")]
    words += ["--data", str(data), "--samples", "11", "--batch-size", "2", "--sparsity"]
    done, refused, misspelt = (
        subprocess.run([*words, *more], env=environment, capture_output=True, text=True, timeout=300)
        for more in (["2:4", "--method", "wanda"], ["2:4", "--method", "wanda"], ["2:4", "--method", "wnda"])
    )
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["vision", "language"]
    assert weights_in(tmp_path / "out") == weights_in(root / "wanda, 1")
    for failed, line in ((refused, "the output folder is not empty"), (misspelt, "did you mean 'wanda'")):
        assert failed.returncode != 0
        assert [line in said for said in failed.stderr.splitlines() if said.startswith("ressa: ")] == [True]
