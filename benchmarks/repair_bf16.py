"""Is a step of repair in bfloat16 as near to float32 as one of another source tree? `repair_bf16.py WORK NAME`.

Each call writes WORK/NAME-KIND-SEED.pt: gradients and loss of the first step of `demo` at 2:4, of which PYTHONPATH says
by what code; KIND is bfloat16, float32, or shaken: bfloat16 with one weight of the loss changed by 2e-7 of it, which
shows what rounding alone does. With `--trained` the adapters are not zero. With `--steps` it writes the losses of so
many steps instead. `repair_bf16.py WORK --compare BEFORE NOW` prints both, beside BEFORE in float32.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import ressa
from ressa.data.emoji import write
from ressa.repairing.trainer import Adaptation

HIDDEN = {"bfloat16": 100.0, "float32": 100.0, "shaken": 100.00002}


class Done(BaseException):
    """Nothing is written."""


def shift(model: Any) -> None:
    """Adapters and what is trained beside them, as if some steps had been made."""
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "sparselora_B" in name:
                p.copy_(torch.randn(p.shape, generator=noise) * 0.005)
            elif p.requires_grad and p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=noise) * 0.01)


def record(work: Path, kind: str, seed: int, steps: int, trained: bool) -> dict[str, Any]:
    """{"gradients": (N,), "losses"} of the first step, or {"losses"} of `steps`."""
    losses, found = list[float](), dict[str, Any]()
    compute, update = Adaptation.compute_loss, torch.optim.AdamW.step

    def computed(self: Any, model: Any, *given: Any, **more: Any) -> Any:
        if trained:
            shift(model)
        result = compute(self, model, *given, **more)
        losses.append(float((result[0] if isinstance(result, tuple) else result).detach().double()))
        return result

    def updated(self: Any, *given: Any, **more: Any) -> Any:
        if steps > 1:
            return update(self, *given, **more)
        parameters = (p for group in self.param_groups for p in group["params"])
        found["gradients"] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        raise Done

    def tell(done: int, total: int, what: str) -> None:
        if what.startswith("repair") and done == total > 1:
            raise Done

    Adaptation.compute_loss, torch.optim.AdamW.step = computed, updated
    where = {"teacher": "demo", "data": work / "data", "batch_size": 16, "threads": 1, "seed": seed, "progress": tell}
    settings = {"dtype": "float32" if kind == "float32" else "bfloat16", "hidden_weight": HIDDEN[kind]}
    how = {"steps": steps} if steps > 1 else {"steps": 5, "clip": 0}
    with suppress(Done):
        ressa.repair(work / "pruned", work / f"out-{kind}-{seed}", **where, **settings, **how)
    Adaptation.compute_loss, torch.optim.AdamW.step = compute, update
    return found | {"losses": losses}


def compare(work: Path, before: str, now: str) -> None:
    """A line for each seed: the distance of each gradient from that in float32 in percent, or the later half's loss."""
    for file in sorted(work.glob(f"{before}-bfloat16-*.pt")):
        seed, kinds = file.stem.rpartition("-")[2], [(before, "bfloat16"), (before, "shaken"), (now, "bfloat16")]
        paths = {f"{name} {kind}": work / f"{name}-{kind}-{seed}.pt" for name, kind in [*kinds, (before, "float32")]}
        runs = {name: torch.load(path) for name, path in paths.items() if path.exists()}
        exact = runs.pop(f"{before} float32", None)
        if exact is not None and "gradients" in exact:
            g = exact["gradients"].double()
            told = {name: f"{float((run['gradients'] - g).norm() / g.norm()):.4%}" for name, run in runs.items()}
        else:
            half = {name: run["losses"][len(run["losses"]) // 2 :] for name, run in runs.items()}
            told = {name: round(sum(losses) / len(losses), 5) for name, losses in half.items()}
        print(seed, told, "first losses", [run["losses"][0] for run in runs.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--kinds", default="bfloat16,shaken,float32")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--compare", nargs=2)
    asked = parser.parse_args()
    work: Path = asked.work
    if asked.compare:
        compare(work, *asked.compare)
        return
    if not (work / "data").exists():
        write(work / "data", train=4000, validation=500, test=1000)
    if not (work / "pruned").exists():
        ressa.prune("demo", work / "pruned", data=work / "data", sparsity="2:4", method="wanda", threads=1)
    for seed in range(asked.seeds):
        for kind in asked.kinds.split(","):
            file = work / f"{asked.name}-{kind}-{seed}.pt"
            if not file.exists():
                torch.save(record(work, kind, seed, asked.steps, asked.trained), file)


if __name__ == "__main__":
    main()
