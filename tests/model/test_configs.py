"""Models that people use, from their published configs: every parameter is counted, in the part it belongs to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from ressa.model.load import auto_class
from ressa.model.structure import structure

CONFIGS = Path(__file__).parents[1] / "configs"
ROW = re.compile(r"(?m)^\| ([\w.-]+) \| ([\d,]+|-) \| (exactly|within 1 %|prunable) \|")
PUBLISHED = {
    name: (int(total.replace(",", "").replace("-", "0")), held)
    for name, total, held in ROW.findall((CONFIGS / "README.md").read_text(encoding="utf-8"))
}
TIED = {"blip2-flan-t5-xl": 32128 * 2048}  # in the published file a second time
# vision (with its projector) and language as others have counted them
PARTS = {
    "gemma-3-4b-it": (419_816_304, None),
    "gemma-3-12b-it": (421_290_864, None),
    "Qwen2.5-VL-3B-Instruct": (668_684_288, None),
    "Qwen3-VL-2B-Instruct": (406_957_056, 1_720_574_976),
}
# prunable weights of vision and language in millions: the paper's own where it has them, the others from their shapes
PRUNABLE = {
    "blip2-flan-t5-xl": (984.0, 2717.9),
    "instructblip-vicuna-7b": (984.0, 6476.0),
    "llava-1.5-7b-hf": (24 * 12 * 1024**2 / 1e6, 6476.0),
}


def skeleton(name: str) -> nn.Module:
    config = AutoConfig.from_pretrained(CONFIGS / f"{name}.json")
    with torch.device("meta"):
        return auto_class(config).from_config(config)


def test_every_config_has_its_published_total_beside_it():
    assert {path.stem for path in CONFIGS.glob("*.json")} == PUBLISHED.keys()
    assert len([name for name, (_, held) in PUBLISHED.items() if held == "exactly"]) >= 20


@pytest.mark.parametrize("name", [name for name, (total, _) in PUBLISHED.items() if total])
def test_shapes_add_up_to_the_published_total(name):
    total = sum(parameter.numel() for parameter in skeleton(name).parameters()) + TIED.get(name, 0)
    published, held = PUBLISHED[name]
    assert total == (published if held == "exactly" else pytest.approx(published, rel=0.01))


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_part_is_the_sum_of_its_shapes_and_all_parts_are_the_model(name):
    net = skeleton(name)
    parts = structure(net).parts
    sizes = {full: parameter.numel() for full, parameter in net.named_parameters()}
    for part in parts.values():
        tops = tuple(f"{top}." for top in part.modules)
        assert part.parameters == sum(size for full, size in sizes.items() if f"{full}.".startswith(tops))
        assert sum(linear.weight.numel() for b in part.blocks for linear in b.linears.values()) <= part.parameters
    assert sum(part.parameters for part in parts.values()) == sum(sizes.values())


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_as_others_have_counted_them(name):
    parts, (vision, language) = structure(skeleton(name)).parts, PARTS[name]
    connector = parts["connector"].parameters if "connector" in parts else 0
    assert parts["vision"].parameters + connector == vision
    assert language is None or parts["language"].parameters == language


@pytest.mark.parametrize("name", PRUNABLE)
def test_prunable_weights_are_those_of_the_paper(name):
    parts = structure(skeleton(name)).parts
    found = tuple(
        sum(linear.weight.numel() for block in parts[part].blocks for linear in block.linears.values()) / 1e6
        for part in ("vision", "language")
    )
    assert found == pytest.approx(PRUNABLE[name], abs=0.05)
    if "blip" in name:
        assert sum(len(block.linears) for block in parts["vision"].blocks) == 156
