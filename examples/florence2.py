"""Florence-2 at 50 %: an encoder-decoder, asked with the bare question.

python examples/florence2.py --data data/
"""

import argparse
from pathlib import Path

from huggingface_hub import snapshot_download

import ressa

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="florence-community/Florence-2-large-ft", help="a hub name or a folder")
parser.add_argument("--data", default="data", help="a folder with train.jsonl, test.jsonl and pictures")
parser.add_argument("--out", type=Path, default=Path("runs/florence2"), help="where the models go")
parser.add_argument("--samples", type=int, default=128, help="records that calibrate")
parser.add_argument("--steps", type=int, default=200, help="optimiser steps of repair")
parser.add_argument("--limit", type=int, default=200, help="questions that each model is asked")
asked = parser.parse_args()
pruned, repaired = asked.out / "pruned", asked.out / "repaired"

# Florence-2 has no chat template: a folder of links to its files, with one beside them
source = Path(asked.model) if Path(asked.model).is_dir() else Path(snapshot_download(asked.model))
dense = asked.out / "dense"
dense.mkdir(parents=True)
for file in source.iterdir():
    (dense / file.name).symlink_to(file.resolve())
(dense / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}")

# 0.8 B parameters: 50 % where it costs least rather than 2:4 everywhere
ressa.prune(dense, pruned, data=asked.data, samples=asked.samples, sparsity="50%")
ressa.repair(pruned, repaired, teacher=dense, data=asked.data, steps=asked.steps, batch_size=16)
for model in (dense, pruned, repaired):
    scores = ressa.evaluate(model, data=asked.data, limit=asked.limit)
    print(f"{model}: exact match {scores['exact_match']:.1%}, VQA accuracy {scores['vqa_accuracy']:.1%}")
