"""What `ressa data NAME` reads: formats of training data here, those of benchmarks where the benchmark is."""

from __future__ import annotations

from ressa.data.items import Format
from ressa.preparation.cc3m import cc3m
from ressa.preparation.conversations import conversations
from ressa.preparation.vg import vg
from ressa.tasks import TASKS

SOURCES: dict[str, Format] = {
    "cc3m": Format("Conceptual Captions: the TSV file of captions and addresses, or img2dataset's .tar shards", cc3m),
    "vg": Format("Visual Genome: region_descriptions.json or question_answers.json", vg),
    "llava-mix": Format("LLaVA's conversations: llava_v1_5_mix665k.json", conversations),
    "sharegpt4v": Format("ShareGPT4V: any of its .json files", conversations),
    "dataset": Format("any table: a folder that `datasets` saved, Parquet, or NAME or NAME:CONFIG on the hub", None),
} | {name: task.format for name, task in TASKS.items() if task.format}
SOURCES["coco-captions"] = SOURCES["coco"]  # its name before tasks had formats
