"""A pruned pico model, in float32, and the same packed: built once per run. Tests must not write into them."""

from __future__ import annotations

import pytest

import ressa


@pytest.fixture(scope="session")
def pruned(tmp_path_factory, llava_folder):
    out = tmp_path_factory.mktemp("packed") / "pruned"
    ressa.prune(llava_folder, out, method="magnitude", sparsity="50%", vision="2:4")
    return out


@pytest.fixture(scope="session")
def packed(tmp_path_factory, pruned):
    out = tmp_path_factory.mktemp("packed") / "packed"
    ressa.export(pruned, out)
    return out
