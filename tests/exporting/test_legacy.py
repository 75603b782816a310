"""Folders that compressed-tensors up to 0.14 wrote with bitmasks: read as dense ones, and never loaded as they are."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import ressa
from ressa.errors import RessaError
from ressa.exporting.legacy import dense

FORMATS = ["sparse-bitmask", "sparse-24-bitmask"]


def bits_of(mask):
    """Rows of eight neighbours to a byte, the first lowest, written out."""
    rows = mask.reshape(-1, mask.shape[-1]).tolist()
    packed = [[sum(bit << k for k, bit in enumerate(row[i : i + 8])) for i in range(0, len(row), 8)] for row in rows]
    return torch.tensor(packed, dtype=torch.uint8).reshape(*mask.shape[:-1], -1)


def two_of_four(weight):
    """Which two of every four neighbours are stored: the largest, zeros among them where there are too few others."""
    order = weight.abs().reshape(-1, 4).topk(2, dim=1).indices
    return torch.zeros(weight.numel() // 4, 4, dtype=torch.bool).scatter_(1, order, True).view(weight.shape)


def compressed(weight, format):
    mask = weight != 0 if format == FORMATS[0] else two_of_four(weight)
    kept = weight[mask]
    if format == FORMATS[1]:
        return {
            "shape": torch.tensor(weight.shape).reshape(-1, 1),
            "compressed": kept.view(weight.shape[0], weight.shape[1] // 2),
            "bitmask": bits_of(mask),
        }
    counts = mask.sum(-1)
    offsets = counts.cumsum(0) - counts
    return {"shape": torch.tensor(weight.shape), "compressed": kept, "bitmask": bits_of(mask), "row_offsets": offsets}


@pytest.fixture(scope="module")
def two_four(tmp_path_factory, llava_folder):
    out = tmp_path_factory.mktemp("legacy") / "pruned"
    ressa.prune(llava_folder, out, method="magnitude", sparsity="2:4")
    return out


def written(pruned, out, format, key="quantization_config"):
    """The folder as the library wrote it."""
    shutil.copytree(pruned, out)
    matrices = json.loads((out / "ressa.json").read_text())["matrices"]
    (out / "ressa.json").unlink()
    tensors, stored = load_file(out / "model.safetensors"), {}
    ends = tuple(name.removeprefix("model.").split("model.")[-1] + ".weight" for name in matrices)
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if name.endswith(ends) and tensor.ndim == 2:
            stored |= {f"{stem}.{part}": one for part, one in compressed(tensor, format).items()}
        else:
            stored[name] = tensor
    assert len(stored) > len(tensors)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    sparsity = {"format": format, "ignore": [], "sparsity_structure": "2:4", "targets": ["Linear"]}
    config[key] = {"quant_method": "compressed-tensors", "format": "dense", "version": "0.9.1", "config_groups": {}}
    config[key] |= {"quantization_status": "frozen", "sparsity_config": sparsity}
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_weight_comes_back_to_the_bit(format, key, two_four, tmp_path):
    told = ressa.export(written(two_four, tmp_path / "old", format, key), tmp_path / "out", format="dense")["export"]
    was, found = load_file(two_four / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert was.keys() == found.keys()
    assert all(was[name].equal(found[name]) and was[name].dtype == found[name].dtype for name in was)
    matrices = json.loads((two_four / "ressa.json").read_text())["matrices"]
    assert told["linears"].keys() == matrices.keys()
    assert key not in json.loads((tmp_path / "out" / "config.json").read_text())
    ids = torch.arange(5, 15)[None]
    one, other = (ressa.load(folder)[0](input_ids=ids).logits for folder in (two_four, tmp_path / "out"))
    assert one.equal(other)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("verb", ["evaluate", "inspect", "prune"])
def test_every_verb_refuses_such_a_folder_and_names_the_command(format, verb, two_four, tiny_data, refused, tmp_path):
    folder = written(two_four, tmp_path / "old", format)
    more = {"evaluate": ["--data", tiny_data], "prune": [tmp_path / "out", "--method", "magnitude"]}.get(verb, [])
    line = refused(verb, folder, *more)
    assert f"ressa export {folder} OUT --format dense" in line
    assert format in line


def test_load_refuses_what_transformers_would_fill_with_random_weights(two_four, tmp_path):
    folder = written(two_four, tmp_path / "old", FORMATS[0])
    with pytest.raises(RessaError, match="would leave random weights"):
        ressa.load(folder)


def test_it_is_packed_by_way_of_a_dense_folder(two_four, tmp_path, refused):
    folder = written(two_four, tmp_path / "old", FORMATS[1])
    assert "write it as a dense folder first: --format dense" in refused("export", folder, tmp_path / "out")


def test_a_row_of_any_width_and_rank_is_read():
    for shape in ([3], [2, 5], [1, 8], [2, 3, 9]):
        weight = torch.randn(shape) * (torch.rand(shape) < 0.5)
        assert dense("it", shape, weight[weight != 0], bits_of(weight != 0)).equal(weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kept": torch.ones(3)}, "3 weights are stored and its bits ask for 2"),
        ({"kept": torch.ones(2, dtype=torch.int8)}, "int8, which ressa does not read"),
        ({"bits": torch.tensor([[3, 0]], dtype=torch.uint8)}, "does not belong to"),
        ({"bits": torch.tensor([[3]])}, "does not belong to"),
        ({"bits": torch.tensor([[129]], dtype=torch.uint8)}, "bits behind the last column"),
        ({"shape": [1, -5]}, "cannot be"),
        ({"shape": []}, "cannot be"),
    ],
)
def test_tensors_that_contradict_one_another_are_refused(change, words):
    right = {"shape": [1, 5], "kept": torch.ones(2), "bits": torch.tensor([[3]], dtype=torch.uint8)}
    assert dense("it", **right).tolist() == [[1, 1, 0, 0, 0]]
    with pytest.raises(RessaError, match=words):
        dense("it", **(right | change))
