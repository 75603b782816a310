"""InternVL 3 at 2:4. Its processor needs torchvision.

python examples/internvl3.py --data data/
"""

import argparse
from pathlib import Path

import ressa

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="OpenGVLab/InternVL3-8B-hf", help="a hub name or a folder")
parser.add_argument("--data", default="data", help="a folder with train.jsonl, test.jsonl and pictures")
parser.add_argument("--out", type=Path, default=Path("runs/internvl3"), help="where the models go")
parser.add_argument("--samples", type=int, default=64, help="records that calibrate")
parser.add_argument("--steps", type=int, default=200, help="optimiser steps of repair")
parser.add_argument("--limit", type=int, default=200, help="questions that each model is asked")
asked = parser.parse_args()
pruned, repaired = asked.out / "pruned", asked.out / "repaired"

# up to 12 tiles of 256 tokens a picture: few records at a time, and image tokens count little
ressa.prune(
    asked.model,
    pruned,
    data=asked.data,
    samples=asked.samples,
    batch_size=2,
    sparsity="2:4",
    token_weights={"image": 0.05},
)
ressa.repair(pruned, repaired, teacher=asked.model, data=asked.data, steps=asked.steps, batch_size=2)
for model in (asked.model, pruned, repaired):
    scores = ressa.evaluate(model, data=asked.data, limit=asked.limit)
    print(f"{model}: exact match {scores['exact_match']:.1%}, VQA accuracy {scores['vqa_accuracy']:.1%}")
