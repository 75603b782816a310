"""Tables: a `datasets.Dataset`, Parquet files, a folder that `datasets` saved, the name of a data set on the hub."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ressa.errors import RessaError, check_extra, unknown

if TYPE_CHECKING:
    import datasets

ALIASES = {"val": "validation", "validation": "val"}  # publishers' files say val, the hub mostly validation


@contextmanager
def silent() -> Iterator[None]:
    """`datasets` keeps its bars to itself."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def is_saved(path: Path) -> bool:
    """Whether `datasets` wrote this folder (`save_to_disk`)."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def shards(path: Path, split: str = "") -> list[Path]:
    """The Parquet files of a split, or all: {split}-*.parquet or {split}.parquet, in the folder or in data/."""
    names = (f"{glob.escape(split)}-*.parquet", f"{glob.escape(split)}.parquet") if split else ("*.parquet",)
    found = (sorted(folder.glob(name)) for folder in (path, path / "data") for name in names)
    return next(filter(None, found), [])


def load(source: Any, split: str, name: str, *, every_config: bool = False) -> datasets.Dataset:
    """A split of a table, its pictures not decoded.

    Args:
        source: a Dataset or DatasetDict, a .parquet file, a folder, or NAME or NAME:CONFIG on the hub.
        name: of the table, for errors.
        every_config: whether a hub data set without a default configuration is all of them (MMMU's subjects).

    Raises:
        RessaError: no such table, or no such split in it.
    """
    check_extra("data", "datasets")
    import datasets

    from ressa.data.columns import undecoded

    try:
        with silent():
            table = _opened(source, split, every_config)
    except RessaError:
        raise
    except Exception as error:  # whatever a damaged file, the hub or the network makes the readers raise
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise RessaError(f"{name}: no table that datasets can read ({reason})") from None
    if isinstance(table, Mapping):
        table = table[_split_in(table, split, name)]
    if not isinstance(table, datasets.Dataset):
        kind = type(source).__name__
        raise RessaError(f"{name}: expected a folder, a .jsonl file or a datasets.Dataset, not {kind}")
    return undecoded(table)


def is_table(data: Any) -> bool:
    """Whether `data` is what `load` reads, rather than official files. Raises RessaError if it can be neither."""
    if not isinstance(data, str | PathLike):
        import datasets

        if isinstance(data, datasets.Dataset | datasets.DatasetDict):
            return True
        kind = type(data).__name__
        raise RessaError(f"data: expected a folder, a file, a hub dataset or a datasets.Dataset, not {kind}")
    path = Path(data)
    if path.is_file():
        return path.suffix == ".parquet"
    if path.is_dir():
        return is_saved(path) or next(path.glob("**/*.parquet"), None) is not None
    return str(data).count("/") == 1 and not str(data).startswith((".", "/", "~"))


def _opened(source: Any, split: str, every_config: bool) -> Any:
    import datasets

    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if path.is_file():
        return datasets.Dataset.from_parquet(str(path))
    if is_saved(path):
        return datasets.load_from_disk(str(path))
    if path.is_dir():
        files = [str(file) for file in _parquet(path, split)]
        return datasets.Dataset.from_parquet(files) if files else datasets.load_dataset(str(path))
    return _from_hub(str(source), split, every_config)


def _parquet(path: Path, split: str) -> list[Path]:
    for name in filter(None, (split, ALIASES.get(split))):
        if found := shards(path, name) or sorted(path.glob(f"**/{glob.escape(name)}*.parquet")):
            return found
    return []


def _from_hub(source: str, split: str, every_config: bool) -> Any:
    import datasets

    name, _, config = source.partition(":")
    there = [config] if config else datasets.get_dataset_config_names(name)
    configs = ["default"] if "default" in there else there
    if len(configs) > 1 and not every_config:
        raise RessaError(f"{name}: say which of its configurations, NAME:CONFIG: {', '.join(configs)}")
    splits = [_split_in(datasets.get_dataset_split_names(name, config), split, name) for config in configs]
    parts = [datasets.load_dataset(name, c, split=s) for c, s in zip(configs, splits, strict=True)]
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def _split_in(there: Iterable[Any], split: str, name: str) -> str:
    names = [str(known) for known in there]
    found = next((known for known in (split, ALIASES.get(split)) if known in names), None)
    if found is None:
        raise unknown(f"split of {name}", split, names)
    return found
