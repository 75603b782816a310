"""Decode of a 1.7B language model inside a SmolVLM: `python benchmarks/decode.py WORK make`, then `measure`, `write`.

`make` writes the shape of SmolVLM2-2.2B-Instruct (tests/configs/SmolVLM2-2.2B-Instruct.json), random weights in
bfloat16, into WORK, prunes it by magnitude and exports it (one block of each part, which then stands for all of them);
about 15 GB. `measure NAME...` runs `ressa bench` once on each of these folders and adds what came of it to
WORK/rows.json: call it several times, the names in turns, on a machine that does nothing else. `llama PYTHON` measures
llama.cpp on the same language model, by a Python that has `llama-cpp-python` and `gguf` (benchmarks/decode_llama.py).
`write` makes benchmarks/results/decode.md of all rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

import ressa
from ressa.machine import processor, versions
from ressa.reporting.stored import size_of

HERE = Path(__file__).parent
CONFIG = HERE.parent / "tests" / "configs" / "SmolVLM2-2.2B-Instruct.json"
RESULTS = HERE / "results" / "decode.md"
TOKENS = 64
BLOCK = ".layers.0."
SPECIALS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<pad>", "<unk>"]
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
EXPORTS = {  # name: (pruned to, what it is exported with); "dense" is measured as it is
    "dense int8": ("dense", {"values": "int8", "rounding": "nearest"}),
    "50% bf16": ("50%", {"values": "same"}),
    "2:4 bf16": ("2:4", {"values": "same"}),
    "2:4 int8": ("2:4", {"values": "int8", "rounding": "nearest"}),
    "2:4 int4": ("2:4", {"values": "int4", "rounding": "nearest"}),
}


def folder(work: Path, name: str) -> Path:
    return work / name.replace(" ", "-").replace(":", "of").replace("%", "")


def write_dense(out: Path, shape: dict[str, Any]) -> None:
    """The model with random weights, and a processor that makes one tile of a picture.

    Idefics 3's: it does the same as SmolVLM's for pictures, and asks for no package that reads out numbers.
    """
    words = {word: i for i, word in enumerate([*SPECIALS, *(f"w{i}" for i in range(1000))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>")
    vision = shape["vision_config"]
    side = {"longest_edge": vision["image_size"]}
    pictures = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    tokens = (vision["image_size"] // vision["patch_size"] // shape["scale_factor"]) ** 2
    made = Idefics3Processor(pictures, pieces, image_seq_len=tokens, chat_template=TEMPLATE)
    ids = {"pad_token_id": words["<pad>"]}
    shape = shape | ids | {"image_token_id": made.image_token_id, "dtype": "bfloat16"}
    shape["text_config"] = shape["text_config"] | ids | {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration._from_config(SmolVLMConfig(**shape), dtype=torch.bfloat16)
    for parameter in model.parameters():  # trained weights hold hardly a zero: one would cost its matrix a bitmask
        parameter.data.masked_fill_(parameter.data == 0, 1e-3)
    model.save_pretrained(out)
    made.save_pretrained(out)


def make(work: Path) -> None:
    """All folders, first with one block of vision and one of language each, then grown to all of them."""
    shape, small = json.loads(CONFIG.read_text()), work / "one block"
    parts = ("text_config", "vision_config")
    if not (small / "dense").exists():
        write_dense(small / "dense", shape | {part: shape[part] | {"num_hidden_layers": 1} for part in parts})
        for pattern in dict.fromkeys(pattern for pattern, _ in EXPORTS.values() if pattern != "dense"):
            ressa.prune(small / "dense", folder(small, pattern), method="magnitude", sparsity=pattern)
        for name, (pattern, how) in EXPORTS.items():
            ressa.export(folder(small, pattern), folder(small, name), **how)
    for name in ("dense", *EXPORTS):
        if not folder(work, name).exists():
            grow(folder(small, name), folder(work, name), [shape[part]["num_hidden_layers"] for part in parts])
            print(name, size_of(folder(work, name)), flush=True)


def grow(small: Path, out: Path, blocks: list[int]) -> None:
    """The folder with its one block of language and its one of vision as often as the model has them.

    The weights of all blocks are then the same, each in a place of its own, and reading them takes what it takes.
    """
    partial = out.with_name(f"{out.name}.partial")
    shutil.copytree(small, partial, dirs_exist_ok=True)
    config = json.loads((small / "config.json").read_text())
    config["text_config"]["num_hidden_layers"], config["vision_config"]["num_hidden_layers"] = blocks
    (partial / "config.json").write_text(json.dumps(config))
    where, tensors = {}, load_file(small / "model.safetensors")
    (partial / "model.safetensors").unlink()
    for number in range(max(blocks)):
        file = f"model-{number:05}.safetensors"
        own = {}
        for key, tensor in tensors.items():
            if number < blocks["vision" in key] if BLOCK in key else number == 0:
                own[key.replace(BLOCK, f".layers.{number}.")] = tensor
        save_file(own, partial / file, metadata={"format": "pt"})
        where |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": size_of(partial)}, "weight_map": where}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index))
    partial.rename(out)


def measure(work: Path, names: list[str], threads: int, batch_size: int, tokens: int) -> None:
    for name in names:
        how: dict[str, Any] = {"tokens": tokens, "batch_size": batch_size, "repetitions": 1, "threads": threads}
        told = ressa.bench(folder(work, name), **how)
        (model,) = told["models"].values()
        add(work, {"name": name, "machine": told["machine"], "model": model})
        rates = {batch: round(rate["median"], 2) for batch, rate in model["tokens_per_second"].items()}
        print(name, threads, rates, f"load {model['load_seconds']['median']:.1f} s", flush=True)


def measure_llama(work: Path, python: str, threads: int, kinds: list[str]) -> None:
    text = json.loads(CONFIG.read_text())["text_config"]
    for kind in kinds:
        file = work / f"language-{kind}.gguf"
        words = [python, HERE / "decode_llama.py", file, kind, json.dumps(text), str(threads), str(TOKENS)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        told = json.loads(done.stdout.splitlines()[-1])
        machine = processor() | {"compute": "bfloat16", "threads": threads}  # whose table it stands in
        add(work, {"name": f"llama.cpp {kind}", "machine": machine, "llama": told})
        print(kind, told, flush=True)


def add(work: Path, row: dict[str, Any]) -> None:
    file = work / "rows.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*rows, row], indent=1) + "\n")


def arithmetic(work: Path, name: str, dense: int) -> int:
    """The bytes that the format says the parameters take: packed linears by its formula, all else as it was."""
    manifest, total = folder(work / "one block", name) / "ressa.json", dense
    if not manifest.exists():
        return total
    shape, width = json.loads(CONFIG.read_text()), round(2 * dense / size_of(folder(work, "dense")))
    for linear, entry in json.loads(manifest.read_text())["export"]["linears"].items():
        rows, columns = entry["shape"]
        part = "vision_config" if "vision" in linear else "text_config"
        blocks = shape[part]["num_hidden_layers"] if BLOCK in linear else 1  # the connector
        total -= blocks * (width * rows * columns - entry["bytes"])
    return total


def table(work: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Of rows that were measured alike: a line for each of our folders, and for llama.cpp."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row.get("model") or row["llama"])
    names = [name for name in ("dense", *EXPORTS) if name in found]
    dense, whole = median(found["dense"], rate), found["dense"][0]["parameter_bytes"]
    lines = [
        "| | tokens/s (least, most) | x dense | bound | parameters in RAM | of dense | over the format's arithmetic "
        "| peak RSS | load | prefill |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        runs, size = found[name], found[name][0]["parameter_bytes"]
        seconds = [f"{median(runs, lambda r, k=k: r[k]['median']):.1f} s" for k in ("load_seconds", "prefill_seconds")]
        peak = median(runs, lambda r: r["peak_bytes"]["median"])
        cells = [f"{runs[0]['bound']:.2f}", megabytes(size), f"{size / whole:.1%}"]
        cells += [f"{size / arithmetic(work, name, whole):.3f}", megabytes(peak), *seconds]
        lines.append(f"| {name} | {rates(runs, dense)} | {' | '.join(cells)} |")
    for name in (name for name in found if name not in names):
        runs = found[name]
        seconds = [f"{median(runs, lambda r, k=k: r[k]):.1f} s" for k in ("load_seconds", "prefill_seconds")]
        sizes = (
            f"| {megabytes(runs[0]['file_bytes'])} (file) | | | {megabytes(median(runs, lambda r: r['peak_bytes']))}"
        )
        lines.append(f"| {name}, no vision | {rates(runs, dense)} | {sizes} | {' | '.join(seconds)} |")
    return lines


def rates(runs: list[dict[str, Any]], dense: float) -> str:
    found = [rate(run) for run in runs]
    middle = statistics.median(found)
    return f"{middle:.2f} ({min(found):.2f}, {max(found):.2f}) | {middle / dense:.2f}"


def rate(run: dict[str, Any]) -> float:
    found = run["tokens_per_second"]
    return found if isinstance(found, float) else found["1"]["median"]


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def median(runs: list[Any], what: Any) -> float:
    return statistics.median(map(what, runs))


def write(work: Path) -> None:
    rows = json.loads((work / "rows.json").read_text())
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        told = row["machine"]
        plural = "s" if told["threads"] > 1 else ""
        name = f"{told['processor']}, {told['capability']}, {told['compute']}, {told['threads']} thread{plural}"
        groups.setdefault(name, []).append(row)
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    llama = next((row["llama"] for row in rows if "llama" in row), None)
    packages += f", llama-cpp-python {llama['version']}" if llama else ""
    lines = ["# Decode of a 1.7B language model", "", f"{datetime.date.today()}, {packages}."]
    lines += ["By `benchmarks/decode.py`, which says how.", ""]
    for name, own in groups.items():
        lines += [f"## {name}", "", *table(work, own), ""]
    notes = RESULTS.read_text().partition("## Notes\n")[2] if RESULTS.exists() else "\n"
    RESULTS.write_text("\n".join(lines) + "\n## Notes\n" + notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("what", choices=("make", "measure", "llama", "write"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--kinds", default="Q8_0,Q4_0", help="of llama")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.what == "make":
        make(asked.work)
    elif asked.what == "measure":
        measure(asked.work, asked.names, asked.threads, asked.batch_size, asked.tokens)
    elif asked.what == "llama":
        measure_llama(asked.work, asked.names[0], asked.threads, asked.kinds.split(","))
    else:
        write(asked.work)


if __name__ == "__main__":
    main()
