"""Figures as files, whatever letters stand in them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any


def save(figure: Any, path: str | Path, dpi: int) -> Path:
    """Writes a matplotlib figure to `path`; letters that its font lacks are drawn as boxes, without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(path, dpi=dpi)
    return Path(path)
