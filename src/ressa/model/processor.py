"""The processor or tokenizer of a model folder, whole: transformers makes do with less and says so in a log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer

from ressa.errors import RessaError, one_line

FILES = ("processor_config.json", "preprocessor_config.json")  # either names an image processor


def load_processor(name: Any, source: str, *, text_only: bool) -> Any:
    """The processor of a model that reads pictures, the tokenizer of one that does not.

    Raises:
        RessaError: it cannot be loaded, or a part that its files name is not what came of it.
    """
    auto: Any = AutoTokenizer if text_only else AutoProcessor
    try:
        processor = auto.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # tokenizer files are read by many readers, each with its own errors
        raise RessaError(f"{name}: its {auto.__name__[4:].lower()} cannot be loaded: {one_line(error)}") from None
    if not text_only:
        _check_whole(name, Path(source), processor)
    return processor


def _check_whole(name: Any, folder: Path, processor: Any) -> None:
    named = [file for file in FILES if (folder / file).is_file()]
    if named and not hasattr(processor, "image_processor"):
        raise RessaError(
            f"{name}: {named[0]} is there, and yet no image processor came of it ({type(processor).__name__}): "
            "it names a class that this version of transformers does not know"
        )
    for part in (part for part in vars(processor) if part.endswith("_tokenizer")):
        if folder.is_dir() and not (folder / part).is_dir():  # transformers takes the main tokenizer in its place
            raise RessaError(f"{name}: has no folder {part}, where its processor keeps a second tokenizer")
