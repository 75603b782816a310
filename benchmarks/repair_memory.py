"""Memory and time of a step of repair on a LLaVA of half a billion weights: `python benchmarks/repair_memory.py WORK`.

The model has the sizes of Qwen2-0.5B behind a SigLIP-base tower that makes 576 tokens of a picture; its weights are
random, in bfloat16. Each run is a process of its own, one thread, and prints a line of JSON: peak of the main memory,
seconds of the processor in the step. PYTHONPATH says of which source tree; finished models stay in WORK.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

import ressa
from ressa.data.emoji import write
from ressa.demo import EMBEDDED
from ressa.machine import peak_memory, processor

SIDE, PATCH = 384, 16


def build(folder: Path, blocks: int) -> None:
    """The model, untrained, with a processor."""
    config = AutoConfig.from_pretrained(EMBEDDED)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size = 896, 4864, blocks, 151936
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 14, 2, 64
    text.max_position_embeddings, text.tie_word_embeddings = 2048, True
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 768, 3072, blocks // 2
    vision.num_attention_heads, vision.image_size, vision.patch_size = 12, SIDE, PATCH
    config.image_seq_length, config.tie_word_embeddings = (SIDE // PATCH) ** 2, True
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(EMBEDDED)
    processor.image_processor.size = {"height": SIDE, "width": SIDE}
    processor.patch_size = PATCH
    processor.save_pretrained(folder)


class Done(BaseException):
    """The step is over: nothing is written."""


def step(work: Path, settings: dict) -> dict:
    """One step in this process: what it took. Models are loaded before the seconds begin."""
    found: dict = {}

    def tell(done: int, total: int, what: str) -> None:
        if not what.startswith("repair"):
            return
        found.setdefault("began", (time.process_time(), time.perf_counter()))
        if done:
            found["processor_seconds"] = time.process_time() - found["began"][0]
            found["seconds"] = time.perf_counter() - found["began"][1]
            found["peak"] = peak_memory()
            raise Done

    where = {"teacher": work / "dense", "data": work / "data", "steps": 1, "progress": tell}
    with suppress(Done):
        ressa.repair(work / "pruned", work / "out", **where, **settings)
    del found["began"]
    return {**found, "threads": torch.get_num_threads(), **processor()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--blocks", type=int, default=24, help="of the language model; half as many see")
    parser.add_argument("--settings", default='{"batch_size": 4}', help="of repair, as JSON")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    work: Path = asked.work
    if asked.child:
        print(json.dumps(step(work, json.loads(asked.settings))))
        return
    if not (work / "data").exists():
        write(work / "data", train=8, validation=1, test=1)
    if not (work / "dense").exists():
        build(work / "dense", asked.blocks)
    if not (work / "pruned").exists():
        ressa.prune(work / "dense", work / "pruned", method="magnitude")
    words = [sys.executable, __file__, str(work), "--child", "--settings", asked.settings]
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
