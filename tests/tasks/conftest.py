"""Fixtures: a miniature of each task's official files, and a cache of a test's own."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """The scenes of all miniatures. Tests must not write into their folder."""
    import miniatures

    return miniatures.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


@pytest.fixture
def mini(drawn, tmp_path):
    """mini(task): the folder of a task's miniature."""
    import miniatures

    return lambda name: miniatures.BUILDERS[name](tmp_path / name, drawn)
