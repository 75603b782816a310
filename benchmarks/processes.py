"""Two processes against one: `python benchmarks/processes.py WORK` writes its part of results/scale.md.

The LLaVA of 60 million parameters (llava_shape.py) in float32, 2:4, 128 records of 64 image tokens and some 30 words in
batches of 8, from folder to folder by `ressa.prune`, each process with one thread. One and several processes take
turns; shown are medians (least to most) of the wall time of `ressa.prune` in the first process, without the start of
Python and its imports, and of the processor's time: of one process, and of the busiest and of all of several. On a
machine that does other things only the latter mean something. The files of all runs are compared byte for byte.
"""

from __future__ import annotations

import argparse
import datetime
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llava_shape
import torch
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "scale.md"
METHODS = ("wanda", "sparsegpt", "admm")


def model(folder: Path) -> Path:
    """The folder with a processor: words are w3, w4, ..., and one is drawn for a picture."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    if (folder / "processor_config.json").is_file():
        return folder
    shape = llava_shape.config()
    shape.image_token_index = shape.image_token_id = llava_shape.WORDS - 1
    llava_shape.build(shape).save_pretrained(folder)
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "<image>": llava_shape.WORDS - 1}
    words |= {f"w{i}": i for i in range(3, llava_shape.WORDS - 1)}
    pieces = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_max_length=512, extra_special_tokens={"image_token": "<image>"}, **tokens
    )
    side = llava_shape.PIXELS
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    template = "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image> "
    template += "{% elif part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    how: dict[str, Any] = {"patch_size": llava_shape.PATCH, "vision_feature_select_strategy": "full"}
    made = LlavaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template, **how)
    made.save_pretrained(folder)
    return folder


def records(folder: Path, n: int) -> Path:
    """`n` smooth pictures, each with a question and an answer of words drawn by Zipf's law."""
    if (folder / "train.jsonl").is_file():
        return folder
    (folder / "images").mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    zipf = 1 / torch.arange(1, llava_shape.WORDS - 3, dtype=torch.float64)
    lines = []
    for i in range(n):
        coarse = torch.randint(256, (6, 6, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"images/{i}.png")
        drawn = [f"w{3 + j}" for j in torch.multinomial(zipf, 30, replacement=True, generator=generator).tolist()]
        question, answer = " ".join(drawn[:-4]), " ".join(drawn[-4:])
        lines.append(json.dumps({"id": str(i), "image": f"images/{i}.png", "question": question, "answer": answer}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def child(asked: dict[str, Any]) -> None:
    """Prunes in this process, one of those that were launched; leaves what it took in a file of its own."""
    import torch.distributed.tensor

    import ressa
    from ressa.parallel import rank
    from ressa.pruning import verb

    ressa.load(asked["prune"]["model"])  # all is imported: transformers does it when it is asked for
    assert verb.prune
    assert torch.distributed.tensor
    start, busy = time.perf_counter(), time.process_time()
    manifest = ressa.prune(**asked["prune"])
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy, "machine": manifest["machine"]}
    Path(f"{asked['prune']['out']}.{rank()}.json").write_text(json.dumps(took))


def launched(work: Path, method: str, size: int, samples: int) -> dict[str, Any]:
    """{"seconds": of the first process, "cpu": of each}."""
    out = work / f"{method}-{size}"
    shutil.rmtree(out, ignore_errors=True)
    told = {"model": str(work / "model"), "data": str(work / f"data-{samples}"), "out": str(out)}
    asked = {"prune": told | {"method": method, "samples": samples, "threads": 1}}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
    command = [sys.executable, *launch, __file__, str(work), "--child", json.dumps(asked)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (work / "run.log").open("w") as log:
        if subprocess.run(command, env=environment, stdout=log, stderr=log).returncode:
            raise SystemExit(f"{out.name} failed: see {work / 'run.log'}")
    found = [json.loads(Path(f"{out}.{rank}.json").read_text()) for rank in range(size)]
    return {"seconds": found[0]["seconds"], "cpu": [took["cpu"] for took in found], "machine": found[0]["machine"]}


def same(work: Path, method: str, sizes: list[int]) -> bool:
    files = [work / f"{method}-{size}" / "model.safetensors" for size in sizes]
    return all(filecmp.cmp(files[0], other, shallow=False) for other in files[1:])


def report(runs: dict[str, dict[str, list[dict[str, Any]]]], equal: dict[str, bool], samples: int) -> str:
    heads = ("processes", "wall s", "ratio", "CPU s, the busiest", "ratio", "CPU s, all", "files")
    rows = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for method, sizes in runs.items():
        one = {key: statistics.median(values) for key, values in _columns(sizes["1"]).items()}
        for size, took in sizes.items():
            columns = _columns(took)
            wall, most, total = (columns[key] for key in ("wall", "most", "total"))
            ratios = [f"{statistics.median(columns[key]) / one[key]:.2f}" for key in ("wall", "most")]
            files = "" if size == "1" else "the same" if equal[method] else "not the same"
            cells = [size, _spread(wall), ratios[0], _spread(most), ratios[1], _spread(total), files]
            rows.append(f"| {method} | " + " | ".join(cells) + " |")
    machine = next(iter(runs.values()))["1"][0]["machine"]
    place = f"{machine['processor']}, {machine['capability']}, {samples} records, one thread a process"
    return "\n".join([f"{datetime.date.today()}, {place}.", "", *rows])


def _columns(took: list[dict[str, Any]]) -> dict[str, list[float]]:
    found = {"wall": [run["seconds"] for run in took], "most": [max(run["cpu"]) for run in took]}
    return found | {"total": [sum(run["cpu"]) for run in took]}


def _spread(values: list[float]) -> str:
    least, most = min(values), max(values)
    return f"{statistics.median(values):.1f}" + (f" ({least:.1f} to {most:.1f})" if len(values) > 1 else "")


def write(text: str) -> None:
    """Between the page's marks; what stands around them is written by hand."""
    before, start, rest = RESULTS.read_text(encoding="utf-8").partition("<!-- processes -->\n")
    _, end, after = rest.partition("\n<!-- end of processes -->")
    RESULTS.write_text(before + start + text + end + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--sizes", default="1,2", help="numbers of processes, 1 among them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(json.loads(asked.child))
    work, sizes = asked.work, [int(size) for size in asked.sizes.split(",")]
    work.mkdir(parents=True, exist_ok=True)
    model(work / "model"), records(work / f"data-{asked.samples}", asked.samples)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    equal: dict[str, bool] = {}
    for method in asked.methods.split(","):
        runs[method] = {str(size): [] for size in sizes}
        for _ in range(asked.repeats):
            for size in sizes:
                runs[method][str(size)].append(launched(work, method, size, asked.samples))
                print(method, size, {key: runs[method][str(size)][-1][key] for key in ("seconds", "cpu")}, flush=True)
        equal[method] = same(work, method, sizes)
        write(report(runs, equal, asked.samples))


if __name__ == "__main__":
    main()
