"""Our SparseGPT and ADMM beside llm-compressor's SparseGPT: `python benchmarks/llm_compressor.py WORK`.

Writes benchmarks/results/llm_compressor.md. The same model (benchmarks/llava_shape.py), 128 samples of 96 tokens, 2:4
in every linear of the vision and language blocks, float32, the same cores; each library in an environment of its own
(WORK/peer-venv is made when it is missing). Every run is a new process, and the contestants take turns.

Timed, alike on both sides: from a model in memory and the samples as batches of tensors to the pruned weights in the
model; imports, loading and saving are outside. The peer is called as its documentation shows (`oneshot`, sequential
pipeline). It calibrates all vision blocks on what the dense tower computes, even with the blocks of the tower among
its sequential targets, and language blocks on what pruned ones hand on. Memory is the largest resident set of the
process until then, imports and model included. Errors are measured afterwards by one process, on the saved weights of
all, against the dense model on 32 other samples. "as the peer": with the peer's order, by one walk for each part.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from llava_shape import TOKENS, batches, config, floor_flop, gflops, samples, save
from safetensors.torch import save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

RESULTS = Path(__file__).parent / "results" / "llm_compressor.md"
PEER = "llmcompressor==0.14.0.1"  # has SparseGPTModifier, although its README names it no longer
SAMPLES = 128
SIDES = {  # name: (library, method, samples in a batch, how blocks hand on what they make of them)
    "ressa sparsegpt": ("ressa", "sparsegpt", 8, "sequential"),
    "ressa sparsegpt, dense": ("ressa", "sparsegpt", 8, "dense"),
    "ressa sparsegpt, as the peer": ("ressa", "sparsegpt", 8, "vision dense"),
    "ressa admm": ("ressa", "admm", 8, "sequential"),
    "ressa admm, dense": ("ressa", "admm", 8, "dense"),
    "llm-compressor, batch 8": ("peer", "sparsegpt", 8, "sequential"),
    "llm-compressor, batch 1 (its default)": ("peer", "sparsegpt", 1, "sequential"),
}
BEST, DEFAULT = list(SIDES)[-2:]


def peer_python(work: Path) -> Path:
    """The interpreter of the peer's environment: the torch that runs here, and of the rest what the peer asks for."""
    venv = work / "peer-venv"
    python = venv / "bin" / "python"
    if not (venv / ".ready").exists():
        torch_here = f"torch=={version('torch').split('+')[0]}"
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        for packages in ([torch_here], [torch_here, PEER]):  # torch first and alone: the others then live with it
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (venv / ".ready").touch()
    return python


def ours(model: Any, fed: list[dict], method: str, propagate: str) -> Callable[[], object]:
    from ressa import methods
    from ressa.calibration.gather import gather
    from ressa.calibration.tokens import token_weights
    from ressa.calibration.walk import walk
    from ressa.model.structure import structure
    from ressa.patterns import NofM
    from ressa.pruning.blocks import prune_block

    run, pattern = methods.get(method), NofM(2, 4)

    @torch.no_grad()
    def prune() -> None:  # what ressa.pruning.verb does between loading and writing
        tokens = [token_weights(batch, model.config) for batch in fed]
        walks = [(("vision", "language"), propagate)]
        if propagate == "vision dense":  # then language, in a walk of its own
            walks = [(("vision",), "dense"), (("language",), "sequential")]
        for parts, how in walks:
            for visit in walk(model, structure(model).blocks(parts), fed, propagate=how):
                inputs = gather(visit, run.needs, tokens)
                prune_block(run, visit.block, inputs, dict.fromkeys(visit.block.linears, pattern))
                del inputs

    return prune


def peer(model: Any, fed: list[dict], folder: Path) -> Callable[[], object]:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    recipe = SparseGPTModifier(
        sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["re:.*lm_head", "re:.*multi_modal_projector"]
    )
    asked = {
        "processor": AutoTokenizer.from_pretrained(folder),
        "dataset": DataLoader(fed, batch_size=None),
        "num_calibration_samples": sum(len(batch["input_ids"]) for batch in fed),
        "pipeline": "sequential",
        "sequential_targets": ["LlamaDecoderLayer"],
    }
    return lambda: oneshot(model=model, recipe=recipe, **asked)


def one_side(work: Path, name: str, cores: int, n: int) -> None:
    """Prunes in this process; prints what it took as the last line, and leaves the weights in WORK."""
    library, method, size, propagate = SIDES[name]
    torch.set_num_threads(cores)
    speed = gflops()
    model = LlavaForConditionalGeneration.from_pretrained(work / "model", dtype=torch.float32).eval()
    fed = batches(samples(n, seed=1), size)
    prune = ours(model, fed, method, propagate) if library == "ressa" else peer(model, fed, work / "model")
    before = _memory()
    start, busy = time.perf_counter(), time.process_time()
    prune()
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    took |= {"peak": _memory(), "before": before, "gflops": speed, "versions": _versions()}
    save_file({key: weight.detach().contiguous() for key, weight in model.named_parameters()}, _weights(work, name))
    print("\n" + json.dumps(took))


def _weights(work: Path, name: str) -> Path:
    return work / f"{list(SIDES).index(name)}.safetensors"


def _memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    found = {}
    for name in ("ressa", "llmcompressor", "compressed-tensors", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def contest(home: Path, work: Path, names: list[str], repeats: int, told: list[str]) -> dict[str, list[dict]]:
    """Every contestant `repeats` times, one process after the other, taking turns."""
    pythons = {"ressa": Path(sys.executable), "peer": peer_python(home)}
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for repeat, name in itertools.product(range(repeats), names):
        command = [pythons[SIDES[name][0]], __file__, home, *told, "--side", name]
        log = _weights(work, name).with_suffix(".log")
        with log.open("w") as noise:
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=noise, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed: see {log}")
        runs[name].append(json.loads(done.stdout.splitlines()[-1]))
        took = runs[name][-1]
        print(f"{repeat + 1}/{repeats} {name}: {took['seconds']:.1f} s, {took['peak'] / 1e9:.2f} GB", flush=True)
    return runs


def report(runs: dict[str, list[dict]], found: dict[str, dict], shape: LlavaConfig, n: int, cores: int) -> str:
    speed = statistics.median(run["gflops"] for side in runs.values() for run in side)
    flop = floor_flop(shape, n)
    kinds = ", ".join(f"{kind} {value / 1e12:.2f}" for kind, value in flop.items())
    versions = {SIDES[name][0]: side[0]["versions"] for name, side in runs.items()}
    used = "; ".join(", ".join(f"{key} {value}" for key, value in own.items()) for own in versions.values())
    return "\n".join(
        [
            "# Beside llm-compressor: time, memory, error",
            "",
            f"{datetime.date.today()}, {platform.machine()}, {cores} cores, CPU, float32, seed 0. {used}.",
            "",
            f"LLaVA of {shape.text_config.num_hidden_layers} language blocks (576/1536) and "
            f"{shape.vision_config.num_hidden_layers} vision blocks (384/1536), {n} samples of {TOKENS} tokens, 2:4 in "
            "every linear of these blocks. Each run is a process of its own, the sides take turns, "
            f"{len(next(iter(runs.values())))} times; shown are medians (least to most). What is timed stands at the "
            "top of the script.",
            "",
            f"The floor of SparseGPT is {sum(flop.values()) / 1e12:.2f} TFLOP ({kinds}): "
            f"{sum(flop.values()) / speed / 1e9:.1f} s at the {speed:.0f} GFLOP/s that a product of two 2048 x 2048 "
            "matrices reached just before the runs (median). That of ADMM has its products besides. With dense "
            "propagation (`--propagate dense`) every block runs once instead of twice, and the floor is lower.",
            "",
            *_table(runs, found, shape, n, speed),
            "",
            "Errors are squared and relative, means over blocks, on 32 other samples. *own*: of a pruned "
            "block given the dense model's input, relative to what the dense block adds to it. *arrived*: of what "
            "leaves the block in the pruned model, relative to what leaves it in the dense one. Block by block, own "
            "and arrived:",
            "",
            *_block_table(found),
            "",
        ]
    )


def _table(runs: dict[str, list[dict]], found: dict[str, dict], shape: LlavaConfig, n: int, speed: float) -> list[str]:
    heads = ["seconds", "x peer's best", "x peer's default", "x floor", "peak GB", "own, vision", "own, language"]
    heads += ["arrived, vision", "arrived, language"]
    rows = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    time_of = {name: statistics.median(run["seconds"] for run in side) for name, side in runs.items()}
    for name, side in runs.items():
        every = [run["seconds"] for run in side]
        ratios = [f"{time_of[name] / time_of[other]:.2f}" if other in time_of else "" for other in (BEST, DEFAULT)]
        _, method, _, propagate = SIDES[name]
        floor = sum(floor_flop(shape, n, _iterations(method), propagate).values()) / speed / 1e9
        cells = [f"{time_of[name]:.1f} ({min(every):.1f} to {max(every):.1f})", *ratios, f"{time_of[name] / floor:.2f}"]
        cells.append(f"{statistics.median(run['peak'] for run in side) / 1e9:.2f}")
        cells += [
            f"{statistics.mean(found[name][part][kind]):.4f}"
            for kind in ("own", "arrived")
            for part in ("vision", "language")
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def _block_table(found: dict[str, dict]) -> list[str]:
    rows = ["| block | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    for part, one in next(iter(found.values())).items():
        for block in range(len(one["own"])):
            pairs = [(errors[part]["own"][block], errors[part]["arrived"][block]) for errors in found.values()]
            rows.append(f"| {part} {block} | " + " | ".join(f"{a:.4f}, {b:.4f}" for a, b in pairs) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    parser.add_argument("--only", action="append", choices=SIDES, help="leave the other contestants out")
    parser.add_argument("--tiny", action="store_true", help="3 blocks, 16 samples: to see that everything works")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what the processes are started with
    asked = parser.parse_args()
    work, n = (asked.work / "tiny", 16) if asked.tiny else (asked.work, SAMPLES)
    if asked.side:
        return one_side(work, asked.side, asked.cores, n)
    shape, model = config(2, 1) if asked.tiny else config(), work / "model"
    if not (model / "tokenizer.json").exists():
        save(model, shape)
    told = ["--cores", str(asked.cores), *(["--tiny"] if asked.tiny else [])]
    runs = contest(asked.work, work, asked.only or _known(), asked.repeats, told)
    from llava_errors import errors  # not at the top: the peer's environment has no ressa

    text = report(runs, {name: errors(model, _weights(work, name)) for name in runs}, shape, n, asked.cores)
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(text)
    print(text)


def _known() -> list[str]:
    from ressa.methods import METHODS

    return [name for name, (library, method, *_) in SIDES.items() if library == "peer" or method in METHODS]


def _iterations(method: str) -> int:
    from ressa.methods import METHODS

    setting = inspect.signature(METHODS[method]).parameters.get("iterations")
    return setting.default if setting else 0


if __name__ == "__main__":
    main()
