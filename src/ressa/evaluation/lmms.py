"""The bridge to lmms-eval: the same model folder, evaluated by it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ressa import families, parallel
from ressa.errors import RessaError
from ressa.files.paths import path_of
from ressa.machine import AUTO, found
from ressa.model.load import read_config, resolve

ONE = {"llava_hf": "1"}  # the only batch size that these take
BATCH = 32  # of the others, unless told
NEEDED = "lmms-eval is not installed: pip install 'ressa[lmms]'"


def evaluate(model: str | Path, tasks: str, **options: Any) -> None:
    """Run lmms-eval on a model folder; its tables go to the terminal, its files to `out`/lmms. `options` of `command`.

    Raises:
        RessaError: it is not installed, has no class for this model, or ends with an error.
    """
    words = command(model, tasks, **options)
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
    config, device = read_config(model), found().first if device == AUTO else device
    chosen = families.of(config).lmms
    if not chosen:
        raise RessaError(f"{model}: lmms-eval has no class for {config.model_type}; ressa's own tasks do")
    arguments = f"pretrained={resolve(model)}" + (f",device_map={device}" if chosen == families.PLAIN.lmms else "")
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
