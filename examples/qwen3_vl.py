"""Qwen3-VL: 2:4 in the language model, 40 % in the vision tower. Its processor needs torchvision.

python examples/qwen3_vl.py --data data/
"""

import argparse
from pathlib import Path

import ressa

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="Qwen/Qwen3-VL-8B-Instruct", help="a hub name or a folder")
parser.add_argument("--data", default="data", help="a folder with train.jsonl, test.jsonl and pictures")
parser.add_argument("--out", type=Path, default=Path("runs/qwen3_vl"), help="where the models go")
parser.add_argument("--samples", type=int, default=128, help="records that calibrate")
parser.add_argument("--steps", type=int, default=200, help="optimiser steps of repair")
parser.add_argument("--limit", type=int, default=200, help="questions that each model is asked")
asked = parser.parse_args()
pruned, repaired = asked.out / "pruned", asked.out / "repaired"

# features of three vision blocks go straight into the language model too: the tower is spared
ressa.prune(asked.model, pruned, data=asked.data, samples=asked.samples, batch_size=4, language="2:4", vision="40%")
ressa.repair(pruned, repaired, teacher=asked.model, data=asked.data, steps=asked.steps, batch_size=4)
for model in (asked.model, pruned, repaired):
    scores = ressa.evaluate(model, data=asked.data, limit=asked.limit)
    print(f"{model}: exact match {scores['exact_match']:.1%}, VQA accuracy {scores['vqa_accuracy']:.1%}")
