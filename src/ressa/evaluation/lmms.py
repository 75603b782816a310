"""The bridge to lmms-eval: the same model folder, evaluated by it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from ressa.errors import RessaError
from ressa.evaluation import parallel
from ressa.files.paths import path_of
from ressa.machine import AUTO, found
from ressa.model.load import read_config, resolve

# Which of lmms-eval's model classes loads which of transformers' (lmms_eval/models, version 0.7); others go to the one
# that takes any model with a chat template.
CLASSES = {
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
    "instructblip": "instructblip",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "idefics2": "idefics2",
    "mllama": "llama_vision",
    "gemma3": "gemma3",
}
ANY = "huggingface"
ONE = {"llava_hf": "1"}  # the only batch size that these take
BATCH = 32  # of the others, unless told
REFUSED = {"blip-2": "lmms-eval has no class for BLIP-2; ressa's own tasks do"}
NEEDED = "lmms-eval is not installed: pip install 'ressa[lmms]'"


def evaluate(
    model: str | Path,
    tasks: str,
    *,
    out: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    device: str = AUTO,
) -> None:
    """Run lmms-eval on a model folder; its tables go to the terminal, its files to `out`/lmms.

    Raises:
        RessaError: it is not installed, has no class for this model, or ends with an error.
    """
    words = command(model, tasks, out=out, limit=limit, batch_size=batch_size, device=device)
    if find_spec("lmms_eval") is None:
        raise RessaError(NEEDED)
    ended = subprocess.run(words, check=False).returncode
    if ended and parallel.rank() == 0:
        raise RessaError(f"lmms-eval ended with code {ended}; what it said stands above. It ran: {' '.join(words)}")


def command(
    model: str | Path,
    tasks: str,
    *,
    out: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    device: str = AUTO,
) -> list[str]:
    """The words of the command line that evaluates `model` on `tasks` (lmms-eval's own names, with commas).

    Raises:
        RessaError: no task named, or a model or batch size that lmms-eval has no class for.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise RessaError("lmms: names no task; python -m lmms_eval --tasks list shows them")
    kind = read_config(model).model_type
    if kind in REFUSED:
        raise RessaError(f"{model}: {REFUSED[kind]}")
    chosen, device = CLASSES.get(kind, ANY), found().first if device == AUTO else device
    arguments = f"pretrained={resolve(model)}" + (f",device_map={device}" if chosen == ANY else "")
    if "," in resolve(model):
        raise RessaError(f"{model}: lmms-eval cannot read a path with a comma; rename the folder")
    words = [sys.executable, "-m", "lmms_eval", "--model", chosen, "--model_args", arguments]
    size = str(batch_size or ONE.get(chosen, BATCH))
    if size != ONE.get(chosen, size):
        raise RessaError(f"{model}: lmms-eval's {chosen} takes batches of {ONE[chosen]} only: leave --batch-size out")
    words += ["--tasks", ",".join(names), "--batch_size", size, "--device", device]
    words += ["--limit", str(limit)] if limit is not None else []
    if out is None:
        return words
    return [*words, "--output_path", str(path_of(out, "the output") / "lmms"), "--log_samples"]
