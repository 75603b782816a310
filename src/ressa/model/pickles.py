"""Model folders whose weights are pickles, which can run code when they are read: ressa reads safetensors only."""

from __future__ import annotations

import shlex
from pathlib import Path

from ressa.errors import RessaError

PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")  # Trainer leaves them beside weights
OURS = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # what transformers itself can still read


def check_pickle(source: str | Path) -> None:
    """Raises RessaError if `source` is a folder with pickles and no safetensors, with what turns them into such."""
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors*")):
        return
    found = {file.name: file for pattern in PICKLES for file in folder.glob(pattern) if file.name not in NOT_WEIGHTS}
    if not found:
        return
    ours = next((name for name in OURS if name in found), None)
    how = f"convert it once, if you trust it: {command(folder)}" if ours else "write it again with save_pretrained"
    raise RessaError(
        f"{folder}: its weights are a pickle ({ours or min(found)}), which can run code when it is read; ressa reads "
        f"safetensors only: {how}"
    )


def command(folder: Path) -> str:
    """A command that writes safetensors beside the pickle, with transformers, which runs none of the folder's code."""

    code = (
        "import sys, transformers as t; f = sys.argv[1]; c = t.AutoConfig.from_pretrained(f); "
        "getattr(t, c.architectures[0]).from_pretrained(f, dtype='auto', use_safetensors=False).save_pretrained(f)"
    )
    return f'python -c "{code}" {shlex.quote(str(folder))}'
