"""Llama 3.2 Vision at 2:4: its cross-attention layers are blocks like all others.

python examples/mllama.py --data data/
"""

import argparse
from pathlib import Path

import ressa

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "model", nargs="?", default="meta-llama/Llama-3.2-11B-Vision-Instruct", help="a hub name or a folder"
)
parser.add_argument("--data", default="data", help="a folder with train.jsonl, test.jsonl and pictures")
parser.add_argument("--out", type=Path, default=Path("runs/mllama"), help="where the models go")
parser.add_argument("--samples", type=int, default=128, help="records that calibrate")
parser.add_argument("--steps", type=int, default=200, help="optimiser steps of repair")
parser.add_argument("--limit", type=int, default=200, help="questions that each model is asked")
asked = parser.parse_args()
pruned, repaired = asked.out / "pruned", asked.out / "repaired"

# pictures are read by cross-attention alone: what the language model hears is text, at full weight
ressa.prune(asked.model, pruned, data=asked.data, samples=asked.samples, sparsity="2:4", batch_size=2)
ressa.repair(pruned, repaired, teacher=asked.model, data=asked.data, steps=asked.steps, batch_size=2)
for model in (asked.model, pruned, repaired):
    scores = ressa.evaluate(model, data=asked.data, limit=asked.limit)
    print(f"{model}: exact match {scores['exact_match']:.1%}, VQA accuracy {scores['vqa_accuracy']:.1%}")
