"""compare and what it measures: block errors, a folder a method, the table and the plot."""

from __future__ import annotations

import json

import pytest
import torch

from ressa import compare
from ressa.calibration.samples import samples
from ressa.errors import RessaError
from ressa.evaluation.blocks import block_errors
from ressa.evaluation.settings import Evaluate
from ressa.model.load import load
from ressa.reporting.comparison import geometric_mean, plot, table

METHODS = ["magnitude", "wanda", "sparsegpt"]
SMALL = {"samples": 8, "batch_size": 4}


@pytest.fixture(params=["llava", "blip2_t5", "instructblip_llama"])
def folder(request):
    return request.getfixturevalue(f"{request.param}_folder")


def test_a_model_is_nowhere_far_from_itself(folder, tiny_data):
    model, processor = load(folder)
    batches = samples(tiny_data, processor, model.config, 6, batch_size=3, split="test")
    errors = block_errors(model, load(folder)[0], batches)
    assert len(errors) >= 4
    assert set(errors.values()) == {0.0}


def test_a_change_shows_in_its_own_block_and_after_it_and_nowhere_before(llava_folder, tiny_data):
    model, processor = load(llava_folder)
    batches = samples(tiny_data, processor, model.config, 6, batch_size=3, split="test")
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight.mul_(0.5)
    errors = block_errors(model, load(llava_folder)[0], batches)
    vision = [error for name, error in errors.items() if "vision" in name]
    assert vision == [0.0] * len(vision)
    assert all(error > 0 for name, error in errors.items() if "vision" not in name)


def test_the_error_of_a_block_is_a_ratio_of_sums_in_which_padding_has_no_part(llava_folder, tiny_data):
    model, processor = load(llava_folder)
    dense = load(llava_folder)[0]
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight.mul_(0.5)
    alone, together = (
        block_errors(model, dense, samples(tiny_data, processor, model.config, 6, batch_size=size, split="test"))
        for size in (1, 6)
    )
    assert alone == pytest.approx(together, rel=1e-4)


def test_methods_are_compared_side_by_side(llava_folder, tiny_data, tmp_path):
    asked = Evaluate(limit=8, max_new_tokens=4)
    told = compare(llava_folder, tmp_path / "out", data=tiny_data, methods=METHODS, **SMALL, asked=asked)
    assert list(told["methods"]) == METHODS
    for result in told["methods"].values():
        assert result["seconds"] > 0
        assert result["peak_memory_bytes"] > 1e6
        assert result["kl"] > 0
        assert all(error > 0 for error in result["blocks"].values())
    mean = {name: geometric_mean(list(result["blocks"].values())) for name, result in told["methods"].items()}
    assert mean["sparsegpt"] < mean["magnitude"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == told
    assert plot(told, tmp_path / "plot.png").stat().st_size > 10_000
    assert table(told).row_count == 3

    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    more = compare(llava_folder, tmp_path / "out", data=tiny_data, methods=[*METHODS[:2]], **SMALL, asked=asked)
    assert more["methods"]["wanda"] == told["methods"]["wanda"]
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    with pytest.raises(RessaError, match="other settings"):
        compare(llava_folder, tmp_path / "out", data=tiny_data, methods=METHODS, samples=4, asked=asked)


@pytest.mark.parametrize(
    ("methods", "said"), [([], "at least one"), (["wanda", "wanda"], "once"), (["wunda"], "wanda")]
)
def test_methods_that_cannot_be_compared_are_refused_before_anything_is_done(methods, said, llava_folder, tmp_path):
    with pytest.raises(RessaError, match=said):
        compare(llava_folder, tmp_path / "out", data="nowhere", methods=methods)
    with pytest.raises(RessaError, match="nowhere"):
        compare(llava_folder, tmp_path / "out", data="nowhere", methods=["wanda"])
    assert not (tmp_path / "out").exists()
