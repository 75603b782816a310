"""That the cost of pruning grows linearly with depth and with tokens: `python benchmarks/cost.py`.

Writes benchmarks/results/cost.md: seconds per block of SparseGPT at 2:4 for models of 4, 8 and 16 language blocks
(576/1536, without vision blocks being pruned) and for 32, 64 and 128 samples; and what gathering a Gram takes for
three numbers of tokens. The rows are measured in turns, several times, and the least time of each is shown: what else
the machine does can only add to it.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from llava_shape import TOKENS, batches, build, config, gflops, samples

from ressa import methods
from ressa.calibration.gather import gather
from ressa.calibration.tokens import token_weights
from ressa.calibration.walk import walk
from ressa.model.structure import structure
from ressa.patterns import NofM
from ressa.statistics import Gram

RESULTS = Path(__file__).parent / "results" / "cost.md"
WIDTHS = (576, 1536)


@torch.no_grad()
def pruning(depth: int, n: int) -> list[float]:
    """Seconds of each block's turn: gathering, pruning, and all batches going on to the next."""
    model, run = build(config(depth, 2)), methods.get("sparsegpt")
    fed = batches(samples(n, seed=1), 8)
    tokens = [token_weights(batch, model.config) for batch in fed]
    stamps = []
    for visit in walk(model, structure(model).blocks(("language",)), fed):
        stamps.append(time.perf_counter())
        inputs = gather(visit, run.needs, tokens)
        for name, linear in visit.block.linears.items():
            linear.weight.copy_(run(linear.weight, inputs[name], NofM(2, 4)))
    stamps.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(stamps)]


def gathering(width: int, tokens: int) -> float:
    """Seconds to gather the Gram of `tokens` tokens, 768 at a time."""
    x_TI, gram = torch.randn(768, width), Gram(width)
    start = time.perf_counter()
    for _ in range(tokens // len(x_TI)):
        gram.add(x_TI)
    return time.perf_counter() - start


def least(rows: dict[tuple[int, int], Callable[[int, int], float]], repeats: int) -> dict[tuple[int, int], float]:
    """The least of `repeats` results of each row, measured in turns."""
    taken: dict[tuple[int, int], list[float]] = {row: [] for row in rows}
    for _ in range(repeats):
        for row, measure in rows.items():
            taken[row].append(measure(*row))
    return {row: min(every) for row, every in taken.items()}


def block_rows(depths: list[int], sizes: list[int], repeats: int) -> list[str]:
    def all_but_the_last(depth: int, n: int) -> float:  # nobody goes on from the last
        each = pruning(depth, n)[:-1]
        return sum(each) / len(each)

    rows = [(depth, min(sizes)) for depth in depths] + [(min(depths), n) for n in sizes if n != min(sizes)]
    found = least(dict.fromkeys(rows, all_but_the_last), repeats)
    first = found[rows[0]]
    return [
        "| language blocks | tokens | seconds per block | x the first row |",
        "|---:|---:|---:|---:|",
        *(f"| {d} | {n * TOKENS} | {found[d, n]:.3f} | {found[d, n] / first:.2f} |" for d, n in rows),
    ]


def gram_rows(tokens: list[int], repeats: int) -> list[str]:
    found = least({(width, t): gathering for width in WIDTHS for t in tokens}, repeats)
    lines = ["| inputs | tokens | seconds | microseconds per token | GFLOP/s |", "|---:|---:|---:|---:|---:|"]
    for (width, t), seconds in found.items():
        lines.append(
            f"| {width} | {t} | {seconds:.3f} | {seconds / t * 1e6:.2f} | {2 * t * width**2 / seconds / 1e9:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    parser.add_argument("--tiny", action="store_true", help="few blocks, samples and tokens: to see that it works")
    asked = parser.parse_args()
    torch.set_num_threads(asked.cores)
    depths, sizes, tokens = [4, 8, 16], [32, 64, 128], [12_288, 49_152, 196_608]
    if asked.tiny:
        depths, sizes, tokens = [2, 3, 4], [8, 16, 24], [768, 1536, 3072]
    versions = ", ".join(f"{name} {version(name)}" for name in ("ressa", "torch", "transformers"))
    text = "\n".join(
        [
            "# What pruning costs grows linearly",
            "",
            f"{datetime.date.today()}, {platform.machine()}, {asked.cores} cores, CPU, float32, seed 0, {versions}. A "
            f"product of two 2048 x 2048 matrices reached {gflops():.0f} GFLOP/s. Least of {asked.repeats} times.",
            "",
            "SparseGPT, 2:4, all language blocks (576/1536) but the last, after which nothing is run:",
            "",
            *block_rows(depths, sizes, asked.repeats),
            "",
            "A block has costs that do not grow with tokens (its solves), so twice the tokens are a little less than "
            "twice the time. Gathering a Gram:",
            "",
            *gram_rows(tokens, asked.repeats),
            "",
        ]
    )
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
