"""PaliGemma 2 at 2:4, asked as its mixture checkpoints were trained: `answer en QUESTION`.

python examples/paligemma2.py --data data/
"""

import argparse
from pathlib import Path

from huggingface_hub import snapshot_download

import ressa

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="google/paligemma2-3b-mix-224", help="a hub name or a folder")
parser.add_argument("--data", default="data", help="a folder with train.jsonl, test.jsonl and pictures")
parser.add_argument("--out", type=Path, default=Path("runs/paligemma2"), help="where the models go")
parser.add_argument("--samples", type=int, default=128, help="records that calibrate")
parser.add_argument("--steps", type=int, default=200, help="optimiser steps of repair")
parser.add_argument("--limit", type=int, default=200, help="questions that each model is asked")
asked = parser.parse_args()
pruned, repaired = asked.out / "pruned", asked.out / "repaired"

# PaliGemma has no chat template: a folder of links to its files, with one beside them
source = Path(asked.model) if Path(asked.model).is_dir() else Path(snapshot_download(asked.model))
dense = asked.out / "dense"
dense.mkdir(parents=True)
for file in source.iterdir():
    (dense / file.name).symlink_to(file.resolve())
(dense / "chat_template.jinja").write_text("<image>answer en {{ messages[0]['content'][-1]['text'] }}")

# 256 image tokens beside a dozen of text
ressa.prune(dense, pruned, data=asked.data, samples=asked.samples, sparsity="2:4", token_weights={"image": 0.1})
ressa.repair(pruned, repaired, teacher=dense, data=asked.data, steps=asked.steps, batch_size=8)
for model in (dense, pruned, repaired):
    scores = ressa.evaluate(model, data=asked.data, limit=asked.limit)
    print(f"{model}: exact match {scores['exact_match']:.1%}, VQA accuracy {scores['vqa_accuracy']:.1%}")
