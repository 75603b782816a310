"""The settings of `prune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ressa.settings import SEEDS, check, setting

METHODS = sorted(path.stem for path in Path(__file__).parents[1].glob("methods/[!_]*.py"))  # importing them loads torch


@dataclass(frozen=True)
class Prune:
    """Where the zeros go."""

    method: str = setting(
        "admm",
        f"How zeros are chosen: {', '.join(METHODS)}; with +refit (wanda+refit) the best weights for the zeros chosen. "
        "Parameters of its own in brackets: ria(power=0.3), admm(iterations=40).",
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
        "Which blocks get more of a part's zeros: uniform (none), arithmetic (later ones), owl, dlp, ecoflap, "
        "ecoflap-zeroth, magnitude; or the JSON file (a ressa.json too) of an allocation to use again.",
    )
    budget: str | None = setting(
        None,
        "Whose zeros the allocation shares out: those of each part, or of the whole model. [part]",
        among=("part", "model"),
    )
    spread: float | None = setting(
        None,
        "How far it goes: arithmetic, owl and dlp stay within this of the mean, ecoflap at most this above. "
        "[0.1, 0.08, 0.15, 0.1]",
        least=0,
        most=1,
    )
    keep_dense: int = setting(
        0, "Leave this many blocks dense: those whose output pruning would change the most. For N:M.", least=0
    )
    split: str = setting("train", "Which records calibrate.")
    samples: int = setting(128, "How many records calibrate.")
    batch_size: int = setting(8, "Records that run together in calibration.")
    seed: int = setting(0, "Draws the records that calibrate, and what a method draws by lot.", least=0, most=SEEDS)
    token_weights: str | None = setting(
        None,
        "How much tokens count in calibration: gradient (as much as answers depend on them), image=0.1,text=1,answer=1 "
        "or both. Padding never counts. [1 each]",
    )
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
        "Added to the Gram's diagonal, as a share of it: the fewer tokens calibrate, the more it takes. [0.01 or 0.1, "
        "as the method's page says]",
        least=0,
    )
    shrinkage: float | None = setting(
        None,
        "Added to the Gram's diagonal besides, as a share of it: so much times inputs over tokens. 0.5 helps where few "
        "tokens calibrate, as in decoders of short answers. [0]",
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
    activations: str = setting(
        "ram",
        "Where what blocks hand on waits: ram, or disk (beside the output), for many or long records.",
        among=("ram", "disk"),
    )
    shard_size: str | None = setting(
        None, "Cut the weights into files of at most this size (5GB), with an index. [one file up to 50GB]"
    )

    def __post_init__(self) -> None:
        if isinstance(self.method, Mapping):  # in YAML: {name: ria, power: 0.3}
            name, *parameters = [f"{key}={value}" for key, value in self.method.items()]
            object.__setattr__(self, "method", f"{name.removeprefix('name=')}({', '.join(parameters)})")
        check(self, "prune", rules="ressa.pruning.request")
