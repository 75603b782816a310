"""A run as `ressa run` leaves it, written by hand: JSON, small safetensors and pictures, without any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

SCRIPT = "<script>alert(1)</script>"
LAYERS = {
    "vision": ("model.vision_tower.encoder.layers", "vision_tower.encoder.layers"),
    "language": ("model.language_model.layers", "language_model.model.layers"),
}  # in memory, on disk
ANSWERS = {  # id: (kind, question, reference, dense, pruned, repaired)
    "q0": ("colour", "What colour is it?", "red", "red", "blue", "red"),
    "q1": ("colour", "And this?", "green", "green", "green", "blue"),
    "q2": ("shape", SCRIPT, "square", "square", "square", "square"),
    "q3": ("shape", "What | `shape` *is* it?", "circle", "circle", "\x1b[31m<b>oval</b>", "circle"),
}


def write(path: Path, told: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(told if isinstance(told, str) else json.dumps(told), encoding="utf-8")


def made_run(out: Path, *, sparsity: str = "50%", share: float = 0.5) -> Path:
    """dense, pruned and repaired with scores, answers, pictures and a recipe. `share` of each matrix is zero."""
    _data(out / "data")
    model(out / "pruned", _manifest(sparsity, share), share)
    repaired = _manifest(sparsity, share) | {"command": "repair", "seconds": 12.5}
    repaired |= {"arguments": {"pruned": str(out / "pruned"), "teacher": "demo", "steps": 3}}
    repaired |= {"before": _manifest(sparsity, share) | {"matrices": {}}}
    repaired |= {"history": [{"step": step, "loss": 8.0 / step, "lr": 0.1} for step in (1, 2, 3)]}
    model(out / "repaired", repaired, share)
    for n, name in enumerate(("dense", "pruned", "repaired")):
        scores(out / "scores" / name, str(out / "data"), str(out / name) if n else "demo", 3 + n)
    write(out / "stages" / "prune.json", {"key": "k"})
    write(out / "recipe.yaml", f"model: demo\nout: {out.name} # {SCRIPT}\n")
    return out


def _data(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    lines = []
    for n, (ident, (kind, question, answer, *_)) in enumerate(ANSWERS.items()):
        Image.new("RGB", (300, 200), (40 * n, 90, 200)).save(folder / "images" / f"{n}.png")
        asked = {"id": ident, "kind": kind, "image": f"images/{n}.png", "question": question, "answer": answer}
        lines.append(json.dumps(asked))
    write(folder / "test.jsonl", "\n".join(lines) + "\n")


def _manifest(sparsity: str, share: float) -> dict[str, Any]:
    matrices = {
        f"{stem}.{block}.fc{n}": {"part": part, "weights": 64, "zeros": round(64 * share), "shape": [8, 8]}
        for part, (stem, _) in LAYERS.items()
        for block in range(2)
        for n in (1, 2)
    }
    parts = {part: {"weights": 256, "zeros": 256 * share, "sparsity": share} for part in LAYERS}
    told = {"command": "prune", "seed": 0, "seconds": 2.25, "peak_memory_bytes": 123_000_000, "matrices": matrices}
    told |= {"arguments": {"model": "demo", "method": "wanda", "sparsity": sparsity, "damp": None}, "parts": parts}
    return told | {"versions": {"ressa": "0.1.0", "torch": "2.13"}, "machine": {"device": "cpu", "compute": "float32"}}


def model(folder: Path, manifest: dict[str, Any], share: float) -> None:
    weight = torch.ones(64)
    weight[: round(64 * share)] = 0
    tensors = {
        f"{stem}.{block}.fc{n}.weight": weight.reshape(8, 8).clone()
        for _, stem in LAYERS.values()
        for block in range(2)
        for n in (1, 2)
    }
    folder.mkdir(parents=True)
    save_file(tensors | {"embed.weight": torch.ones(4, 8), "norm.weight": torch.ones(8)}, folder / "model.safetensors")
    write(folder / "config.json", {"architectures": ["LlavaForConditionalGeneration"]})
    write(folder / "ressa.json", manifest)


def scores(folder: Path, data: str, source: str, column: int) -> None:
    rows, told = [], {}
    for ident, row in ANSWERS.items():
        right = float(row[column] == row[2])
        rows.append({"id": ident, "kind": row[0], "question": row[1], "references": [row[2]], "answer": row[column]})
        rows[-1] |= {"exact_match": right, "vqa_accuracy": right}
        told.setdefault(row[0], []).append(right)
    every = [right for rights in told.values() for right in rights]
    score = sum(every) / len(every)
    summary = {"n": len(every), "exact_match": score, "vqa_accuracy": score, "metrics": ["exact_match", "vqa_accuracy"]}
    summary |= {"kl": None if source == "demo" else 0.1234, "intervals": {"exact_match": [score - 0.2, score + 0.1]}}
    summary |= {"by_kind": {kind: {"n": len(r), "exact_match": sum(r) / len(r)} for kind, r in told.items()}}
    summary |= {"task": "folder", "split": "test", "data": data, "model": source, "seconds": 0.75, "settings": {}}
    write(folder / "scores.json", summary)
    write(folder / "answers.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
