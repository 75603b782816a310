"""What the embedded model scores, and what pruning costs it: `python benchmarks/emoji_llava.py WORK`.

Writes benchmarks/results/emoji_llava.md: exact match on test, never-together and grey pictures, per kind of question;
then for each method and sparsity (vision and language) the exact match and the KL to the dense model. WORK keeps the
data and every finished score, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path

import ressa
from ressa.data.emoji import write

RESULTS = Path(__file__).parent / "results" / "emoji_llava.md"
SPARSITIES = ("50%", "4:8", "2:4", "60%", "70%", "80%")
METHODS = ("random", "magnitude", "ria", "dsnot", "wanda", "wanda+refit", "sparsegpt", "admm", "alps")


def scored(work: Path, name: str, model: str | Path, **asked) -> dict:
    """The scores of a model, from the file if they are there."""
    file = work / "scores" / name / "scores.json"
    if not file.exists():
        ressa.evaluate(model, data=work / "data", batch_size=64, out=file.parent, **asked)
    return json.loads(file.read_text())


def pruned(work: Path, method: str, sparsity: str) -> Path:
    out = work / "models" / f"{method}-{sparsity.replace(':', 'of').rstrip('%')}"
    if not out.exists():
        ressa.prune("demo", out, data=work / "data", method=method, sparsity=sparsity)
    return out


def dense_table(work: Path) -> str:
    scores = {
        "test": scored(work, "test", "demo"),
        "never together": scored(work, "unseen", "demo", split="test_unseen"),
        "test, grey picture": scored(work, "grey", "demo", grey=True),
    }
    kinds = scores["test"]["by_kind"]
    rows = ["| kind | questions | " + " | ".join(scores) + " |", "|---|---:|" + "---:|" * len(scores)]
    for kind in kinds:
        cells = [s["by_kind"].get(kind) for s in scores.values()]
        shown = " | ".join(f"{c['exact_match']:.1%}" if c else "" for c in cells)
        rows.append(f"| {kind} | {kinds[kind]['n']} | {shown} |")
    overall = " | ".join(f"**{s['exact_match']:.1%}**" for s in scores.values())
    return "\n".join([*rows, f"| **all** | {scores['test']['n']} | {overall} |"])


def sweep_table(work: Path) -> str:
    dense = scored(work, "test-1000", "demo", limit=1000)["exact_match"]
    rows = ["| sparsity | " + " | ".join(METHODS) + " |", "|---|" + "---:|" * len(METHODS)]
    for sparsity in SPARSITIES:
        cells = []
        for method in METHODS:
            model = pruned(work, method, sparsity)
            s = scored(work, model.name, model, against="demo", limit=1000)
            cells.append(f"{s['exact_match']:.1%} ({100 * (s['exact_match'] - dense):+.1f}), KL {s['kl']:.3f}")
        rows.append(f"| {sparsity} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    if not (work / "data").exists():
        write(work / "data")
    versions = ", ".join(f"{name} {version(name)}" for name in ("ressa", "torch", "transformers"))
    told = f"{datetime.date.today()}, {platform.machine()}, CPU, {versions}; seed 0, 128 calibration records."
    text = (
        f"# emoji-llava: scores, and what pruning costs\n\n{told}\n\nExact match:\n\n{dense_table(work)}\n\n"
        "Pruned in vision and language, not repaired; exact match on 1,000 questions of test (points lost) and KL to "
        f"dense in nats:\n\n"
        f"{sweep_table(work)}\n"
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
