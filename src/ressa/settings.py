"""Every setting of every verb, declared and explained once: `--help`, recipes and the docs all read it here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TASKS = (
    *("folder", "vqav2", "okvqa", "gqa", "textvqa", "nocaps", "coco", "flickr30k", "flickr30k-retrieval", "pope"),
    *("scienceqa", "mmbench", "mmmu"),
)  # of evaluate.tasks, which loads torch
SEEDS = 2**32 - 1  # numpy, which transformers seeds too, takes no larger one


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    among: tuple[str, ...] | None = None,
) -> Any:
    """A field with its default, the words that `--help` and the docs print, and its limits. Whole numbers are >= 1."""
    limits = {"above": above, "least": least, "most": most, "among": among}
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Runtime:
    """Where everything is computed, and in which number format."""

    device: str = setting("auto", "Where: auto (the first GPU there is, else the CPU), cpu, cuda, cuda:1, xpu, mps.")
    dtype: str = setting(
        "auto",
        "What products are computed in, whatever the folder stores: auto (what it stores where the device multiplies "
        "that natively, else float32), float32, bfloat16, float16. What is written keeps the folder's dtype.",
        among=("auto", "float32", "bfloat16", "float16"),
    )


@dataclass(frozen=True)
class Prune:
    """Where the zeros go."""

    method: str = setting(
        "admm",
        "How zeros are chosen: magnitude, random, wanda, ria, dsnot (which leave the other weights as they are), "
        "sparsegpt, admm or alps; with +refit (wanda+refit) the best weights for the zeros chosen. Parameters of "
        "its own in brackets: ria(power=0.3), admm(iterations=40).",
    )
    sparsity: str = setting(
        "2:4", "Of vision and language: 2:4 keeps 2 of every 4 neighbouring inputs; 50% zeroes half."
    )
    vision: str | None = setting(None, "The same for the vision tower alone; 0 leaves it dense.")
    connector: str | None = setting(None, "The same for the connector (projector, Q-Former); dense unless asked.")
    language: str | None = setting(None, "The same for the language model alone; 0 leaves it dense.")
    total: str | None = setting(
        None,
        "Instead of sparsity: the share of all vision and language weights that becomes zero. Told the sparsity of one "
        "of them, the other makes up for it.",
    )
    allocation: str = setting(
        "uniform",
        "Which blocks get more of a part's zeros: uniform (none), owl, dlp, ecoflap, ecoflap-zeroth, magnitude; or the "
        "JSON file (a ressa.json too) of an allocation to use again.",
    )
    budget: str | None = setting(
        None,
        "Whose zeros the allocation shares out: those of each part, or of the whole model. [part]",
        among=("part", "model"),
    )
    spread: float | None = setting(
        None,
        "How far it goes: owl and dlp stay within this of the mean, ecoflap at most this above. [0.08, 0.15, 0.1]",
        least=0,
        most=1,
    )
    keep_dense: int = setting(
        0, "Leave this many blocks dense: those whose output pruning would change the most. For N:M.", least=0
    )
    split: str = setting("train", "Which records calibrate.")
    samples: int = setting(128, "How many records calibrate.")
    batch_size: int = setting(8, "Records that run together in calibration.")
    patch_embedding: bool = setting(
        False, "Prune the convolution that cuts pictures into patches too, as the vision tower's first layer."
    )
    propagate: str = setting(
        "sequential",
        "Inputs of a block come from pruned blocks (sequential) or not (dense).",
        among=("sequential", "dense"),
    )
    group: str | None = setting(
        None,
        "What competes in a share: row or matrix; for magnitude also part or model. [matrix in vision, else row]",
        among=("row", "matrix", "part", "model"),
    )
    damp: float | None = setting(
        None,
        "Added to the Gram's diagonal, as a share of it: the fewer tokens calibrate, the more it takes. [sparsegpt, "
        "alps, +refit 0.01, admm 0.1]",
        least=0,
    )
    order: str = setting(
        "block",
        "What is pruned from one gathering of inputs: a block, or its linears one after the other (layer: slower).",
        among=("block", "layer"),
    )
    asymmetric: float = setting(
        0.0,
        "How much of the way weights are first moved to answer as the dense model does to its own inputs: 0 to 1.",
        least=0,
        most=1,
    )


@dataclass(frozen=True)
class Repair:
    """SparseLoRA and cross-modality adaptation: how the weights that stay are trained."""

    split: str = setting("train", "Which records train.")
    samples: int | None = setting(None, "How many of them. [all]")
    steps: int | None = setting(None, "Optimiser steps; 0 reconstructs only. [one pass over the samples]", least=0)
    batch_size: int = setting(16, "Records a step, in each process.")
    accumulate: int = setting(1, "So many batches make a step.")
    lr: float | None = setting(
        None,
        "Peak learning rate; cosine to 0 after the warm-up; constant for the paper. [1e-3; masked-ft 2e-4; paper 1e-4]",
        above=0,
    )
    warmup: float | None = setting(
        None, "Share of the steps until the peak learning rate. [0.03; paper 0]", least=0, most=1
    )
    clip: float | None = setting(None, "Largest norm of the gradient; 0 does not clip. [1; paper 0]", least=0)
    adapter: str = setting(
        "sparse-lora",
        "What trains the kept weights: sparse-lora; ste (the same with cheap, biased gradients); masked-ft (all kept "
        "weights); or lora, which is dense and is written beside the model, for it cannot be merged.",
        among=("sparse-lora", "lora", "ste", "masked-ft"),
    )
    parts: str = setting("vision,connector,language", "Whose pruned linears are trained, with commas between them.")
    rank: int | None = setting(None, "Rank of the updates. [32; paper: by part]")
    vision_rank: int | None = setting(None, "The same for vision alone. [paper 4]")
    connector_rank: int | None = setting(
        None,
        "The same for the connector, which then gets updates, pruned or not, and is not trained whole. [paper 2]",
    )
    language_rank: int | None = setting(None, "The same for language alone. [paper 8]")
    alpha: float | None = setting(None, "The update is scaled by alpha / rank. [64; paper 16]", above=0)
    vision_alpha: float | None = setting(None, "The same for vision alone.", above=0)
    connector_alpha: float | None = setting(None, "The same for the connector alone.", above=0)
    language_alpha: float | None = setting(None, "The same for language alone.", above=0)
    dropout: float = setting(0.0, "Share of inputs that an update does not see at a step.", least=0, most=0.99)
    objective: str = setting(
        "ressa",
        "Where what is not told comes from: ressa, or paper: loss, schedule and ranks as RESSA released them.",
        among=("ressa", "paper"),
    )
    kl_weight: float | None = setting(
        None, "a in (1 - a) * cross-entropy + a * KL(dense || sparse). [0.5; paper 0.1]", least=0, most=1
    )
    temperature: float | None = setting(None, "Of the KL, which is scaled by its square. [2; paper 1]", above=0)
    hidden_weight: float | None = setting(
        None,
        "Of the distance of every block's output from the dense one's (SquareHead), added to the loss. [100; paper 0]",
        least=0,
    )
    connector_weight: float | None = setting(
        None, "Of the same distance of what the connector hands to language. [as hidden_weight]", least=0
    )
    train_norms: bool | None = setting(None, "Train the norms too. [yes; paper no]")
    train_biases: bool | None = setting(None, "Train the biases of pruned linears too. [yes; paper no]")
    train_connector: bool | None = setting(
        None, "Train the connector too, whole, where it is not pruned. [yes; paper no]"
    )
    reconstruct: int = setting(
        0, "Passes in which each block by itself is first trained towards the dense one's outputs.", least=0
    )
    reconstruct_lr: float = setting(3e-4, "Peak learning rate of reconstruction.", above=0)
    teacher_device: str | None = setting(None, "Where the dense model runs. [beside the student]")
    teacher_cache: str | None = setting(
        None,
        "A folder for what the dense model says: written once, read by every run on the same records, none of which "
        "then holds the dense model in memory.",
    )
    top_k: int = setting(64, "How many of the likeliest words the cache keeps at each place of an answer.")
    bf16: bool = setting(False, "The same as --dtype bfloat16, by its name in Trainer.")
    gradient_checkpointing: bool = setting(False, "Compute blocks again in the backward pass: less memory, more time.")
    report_to: str = setting("none", "Where losses go, as Trainer names them: tensorboard, wandb, ... [nowhere]")


@dataclass(frozen=True)
class Evaluate:
    """What is asked of a model."""

    task: str = setting(
        "folder",
        "What is asked: folder (your own records) or a benchmark: vqav2, okvqa, gqa, textvqa, nocaps, coco, flickr30k, "
        "flickr30k-retrieval, pope, scienceqa, mmbench, mmmu.",
    )
    split: str | None = setting(None, "Which records are asked. [test, or the task's own]")
    images: str | None = setting(None, "Where the task's pictures lie. [in its data folder]")
    limit: int | None = setting(None, "Ask only this many, drawn at random, the same each time. [all]")
    batch_size: int = setting(32, "Questions answered together.")
    prompt: str | None = setting(
        None, "How a question is put, with {question}, {options} and {hint} in it. [as the task's page says]"
    )
    choices: str | None = setting(
        None,
        "Multiple choice by the likelihood of each option, or by generation of an answer that is read. [likelihood for "
        "BLIP, generation for chat models]",
        among=("likelihood", "generation"),
    )
    max_new_tokens: int | None = setting(None, "Where an answer is cut off. [32, or the task's own]")
    min_new_tokens: int | None = setting(None, "The least tokens of an answer. [the task's own]")
    num_beams: int | None = setting(None, "Beams in generation; 1 is greedy. [1, or the task's own]")
    length_penalty: float | None = setting(None, "Of beams: below 0 for short answers. [the task's own]")
    perplexity: bool = setting(False, "Of the reference answers too; with --against always.")


@dataclass(frozen=True)
class Prepare:
    """How an official download becomes a data folder."""

    form: str = setting(
        "plain",
        "plain: captions, questions and answers as they are; prefix: a caption cut in two, of which the second part is "
        "learnt; instruct: chat messages, with an instruction of InstructBLIP for captions.",
        among=("plain", "prefix", "instruct"),
    )
    split: str = setting("train", "Where records go whose source has no splits of its own.")
    validation: float = setting(0.0, "The share of their pictures that goes to validation instead.", least=0, most=1)
    test: float = setting(0.0, "The same for test.", least=0, most=1)
    limit: int | None = setting(None, "At most so many pictures of each split, drawn by the seed. [all]")
    per_picture: int | None = setting(None, "At most so many records about a picture, drawn by the seed. [all]")
    seed: int = setting(0, "Draws pictures, records, prefixes and instructions.", least=0, most=SEEDS)
    max_side: int | None = setting(None, "Pictures with a longer side are scaled down to it.")
    max_failed: float = setting(
        0.5,
        "Stop when a larger share of the pictures tried, a hundred or all, cannot be used.",
        least=0,
        most=1,
    )
    shard_size: int | None = setting(
        None, "Write Parquet shards of so many records instead of .jsonl and images/, for loading by many processes."
    )
    columns: str | None = setting(
        None, "For dataset: its columns for image, caption, question and answer: image=jpg,caption=txt."
    )
    source_split: str = setting("train", "For dataset: which of its splits is read.")
    workers: int = setting(16, "Pictures that are fetched and decoded at the same time.")
    timeout: float = setting(20.0, "Seconds that a download may take.", above=0)
    retries: int = setting(2, "Further tries of a download that failed for a reason that may pass.", least=0)


@dataclass(frozen=True)
class Recipe:
    """One experiment: prune, then repair, then ask all three models.

    Leave a section out to leave the stage out; `{}` is a section with nothing but defaults.
    """

    model: str = setting("demo", "The dense model: a folder, a hub name, or demo for the one ressa carries.")
    data: str = setting("emoji", "A folder of records, or emoji for the scenes ressa draws.")
    out: str = setting("runs/ressa", "Where everything goes.")
    seed: int = setting(0, "Of calibration, training and drawing.", least=0, most=SEEDS)
    prune: Prune | None = None
    repair: Repair | None = None
    evaluate: Evaluate | None = None
    runtime: Runtime | None = None
