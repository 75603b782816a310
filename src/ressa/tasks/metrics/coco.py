"""METEOR, ROUGE-L and SPICE by the standard COCO caption implementation, where it and Java are there."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ressa.tasks.metrics import ptb

METRICS = ("METEOR", "ROUGE_L", "SPICE")
MODELS = "stanford-corenlp-3.6.0-models.jar"


def missing(metric: str) -> str | None:
    """Why `metric` cannot be computed here and what to do about it; None if it can."""
    if find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed: pip install 'ressa[captions]'"
    if metric != "ROUGE_L" and shutil.which("java") is None:
        return "there is no java on the path: install a Java runtime"
    if metric == "SPICE" and not _spice_models().is_file():
        return (
            f"SPICE needs {MODELS}, which it would download (about 400 MB from nlp.stanford.edu): "
            "run python -m pycocoevalcap.spice.get_stanford_models once"
        )
    return None


def tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Words of each text: by Stanford's own tokenizer where it can be run, else by rules (`ptb.py`)."""
    if not texts or missing("METEOR"):
        return [ptb.words(text) for text in texts]
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = {i: [{"caption": " ".join(text.split()) or "."}] for i, text in enumerate(texts)}  # it drops empty lines
    with contextlib.redirect_stdout(io.StringIO()), _silent_java():
        cut = PTBTokenizer().tokenize(lines)
    return [cut[i][0].split() for i in range(len(texts))]


def scores(
    metric: str, candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, np.ndarray]:
    """(the corpus's score, each caption's score). METEOR's corpus score is not the mean of its captions'."""
    scorer = _scorer(metric)
    theirs = {i: [" ".join(words) for words in captions] for i, captions in enumerate(references)}
    ours = {i: [" ".join(words)] for i, words in enumerate(candidates)}
    with contextlib.redirect_stdout(io.StringIO()), _silent_java():
        total, each = scorer.compute_score(theirs, ours)
    if metric == "SPICE":
        each = [item["All"]["f"] for item in each]
    return float(total), np.array(each, dtype=float)


def _scorer(metric: str) -> Any:
    if metric == "METEOR":
        from pycocoevalcap.meteor.meteor import Meteor

        return Meteor()
    if metric == "ROUGE_L":
        from pycocoevalcap.rouge.rouge import Rouge

        return Rouge()
    from pycocoevalcap.spice.spice import Spice

    return Spice()


def _spice_models() -> Path:
    spec = find_spec("pycocoevalcap")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return Path(roots[0] if roots else ".") / "spice" / "lib" / MODELS


@contextlib.contextmanager
def _silent_java() -> Iterator[None]:
    """The tokenizer's Java tells of its speed on file descriptor 2, where Python cannot catch it."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
