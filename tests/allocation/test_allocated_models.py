"""Allocations of whole models: what is measured of them, budgets met on the disk, and what is refused early."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from ressa import prune
from ressa.allocation import ALLOCATIONS
from ressa.allocation.ecoflap import STEP, saliency, zeroth_order
from ressa.allocation.file import write_allocation
from ressa.allocation.keep_dense import most_sensitive
from ressa.calibration.data import CalibrationData
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.model.folder import read_manifest, zeros
from ressa.model.load import load
from ressa.model.structure import structure

MEASURED = ["owl", "dlp", "ecoflap", "ecoflap-zeroth"]
SMALL = {"samples": 4, "batch_size": 4}


# ---- what is measured ------------------------------------------------------------------------------------------------


@pytest.fixture
def ground(llava_folder, tiny_data) -> CalibrationData:
    net, processor = load(llava_folder)
    records = read_records(tiny_data, "train")
    made = CalibrationData(net, processor, records, samples=6, batch_size=4)
    return made.over(structure(net).blocks(["vision", "language"]))


def test_first_order_ecoflap_is_weight_times_gradient_of_the_answers_loss(ground):
    found = saliency(ground)
    assert all(not p.grad for p in ground.net.parameters())
    assert all(p.requires_grad for p in ground.net.parameters())
    sums, answers = dict.fromkeys(found, 0.0), 0
    for batch in ground.batches:
        ground.net.zero_grad()
        n = int((batch["labels"] != -100).sum())
        ground.net(**batch).loss.backward()
        for block in ground.blocks:
            for linear in block.linears.values():
                sums[block.name] += n * (linear.weight * linear.weight.grad).abs().sum().item()
        answers += n
    assert len(ground.batches) == 2
    assert found == pytest.approx({name: sums[name] / answers / ground.weights[name] for name in sums}, rel=1e-4)


def test_zeroth_order_ecoflap_is_the_slope_along_the_drawn_direction_and_leaves_no_trace(ground):
    before = {name: tensor.clone() for name, tensor in ground.net.state_dict().items()}
    found = zeroth_order(ground)
    assert found == zeroth_order(ground)
    assert all(torch.equal(before[name], tensor) for name, tensor in ground.net.state_dict().items())
    draw, slopes = torch.Generator().manual_seed(0), dict.fromkeys(found, 0.0)
    answers = sum(int((batch["labels"] != -100).sum()) for batch in ground.batches)
    for block in ground.blocks:
        for batch in ground.batches:
            ground.net.zero_grad()
            ground.net(**batch).loss.backward()
            weights = [linear.weight for linear in block.linears.values()]
            slope = sum((w.grad * torch.randn(w.shape, generator=draw)).sum().item() for w in weights)
            slopes[block.name] += abs(slope) * int((batch["labels"] != -100).sum()) / answers
    wanted = {name: slope / math.sqrt(ground.weights[name]) for name, slope in slopes.items()}
    assert found == pytest.approx(wanted, rel=0.05, abs=STEP)


def test_most_sensitive_are_those_of_largest_error_and_all_of_them_are_refused():
    assert most_sensitive({"a": 0.1, "b": 0.5, "c": 0.5, "d": 0.2}, 2) == ["b", "c"]
    with pytest.raises(RessaError, match="keep_dense 2 of 2 blocks"):
        most_sensitive({"a": 0.1, "b": 0.5}, 2)


# ---- whole models ----------------------------------------------------------------------------------------------------


def on_disk(out, manifest) -> dict[str, int]:
    """The zeros of each part, counted from the written file."""
    counted, parts = zeros(out), {}
    for name, entry in manifest["matrices"].items():
        parts[entry["part"]] = parts.get(entry["part"], 0) + counted[name].zeros
    return parts


def sizes_of(manifest) -> dict[str, int]:
    return {name: part["weights"] for name, part in manifest["parts"].items() if part["matrices"]}


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("pool", ["part", "model"])
def test_the_zeros_on_disk_are_the_budget_to_the_weight(name, pool, llava_folder, tiny_data, tmp_path):
    asked = {"total": 0.63} if name == "uniform" else {"sparsity": 0.63, "allocation": name, "budget": pool}
    method = "wanda" if pool == "part" else "magnitude"
    manifest = prune(llava_folder, tmp_path / "out", data=tiny_data, method=method, **asked, **SMALL)
    found, sizes = on_disk(tmp_path / "out", manifest), sizes_of(manifest)
    assert sum(found.values()) == manifest["together"]["zeros"] == round(0.63 * sum(sizes.values()))
    if pool == "part" and name != "uniform":
        assert found == {part: round(0.63 * n) for part, n in sizes.items()}
    told = manifest["allocation"]
    assert told == read_manifest(tmp_path / "out")["allocation"]
    assert told["name"] == name
    if name in MEASURED:
        assert told["score"].keys() == told["sparsity"].keys()
        assert len(set(told["sparsity"].values())) > 1


@pytest.mark.parametrize("group", ["part", "model"])
def test_magnitude_may_compare_a_whole_part_or_model(group, llava_folder, tmp_path):
    manifest = prune(llava_folder, tmp_path / "out", method="magnitude", sparsity="50%", group=group)
    dense, pruned = (load(folder)[0].state_dict() for folder in (llava_folder, tmp_path / "out"))
    names = {"model": [list(manifest["matrices"])]}.get(group) or [
        [name for name, entry in manifest["matrices"].items() if entry["part"] == part]
        for part in ("vision", "language")
    ]
    for pool in names:
        gone = torch.cat([dense[f"{n}.weight"][pruned[f"{n}.weight"] == 0].abs() for n in pool])
        stay = torch.cat([dense[f"{n}.weight"][pruned[f"{n}.weight"] != 0].abs() for n in pool])
        assert gone.max() <= stay.min()
        assert abs(len(gone) - len(stay)) <= 1
    assert len({entry["zeros"] / entry["weights"] for entry in manifest["matrices"].values()}) > 2


@pytest.mark.parametrize("source", ["ressa.json", "file"])
def test_a_saved_allocation_gives_the_same_masks(source, llava_folder, tiny_data, tmp_path):
    request = {"data": tiny_data, "method": "wanda", **SMALL}
    first = prune(llava_folder, tmp_path / "first", sparsity="60%", allocation="ecoflap", **request)
    path = tmp_path / "first" / "ressa.json"
    if source == "file":
        path = tmp_path / "shares.json"
        write_allocation(path, first["allocation"])
    again = prune(llava_folder, tmp_path / "again", allocation=path, **request)
    assert again["allocation"] == {"name": str(path), "unit": "block", "sparsity": first["allocation"]["sparsity"]}
    one, two = (load(tmp_path / name)[0].state_dict() for name in ("first", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("told", [{"vision": "0"}, {"vision": "30%"}, {"language": "55%"}, {"connector": "20%"}])
def test_an_equal_total_has_as_many_zeros_as_the_uniform_budget(told, llava_folder, tmp_path):
    manifest = prune(llava_folder, tmp_path / "out", method="magnitude", total="50%", **told)
    uniform_parts = {"vision", "language"} | told.keys()
    weights = sum(
        linear.weight.numel()
        for block in structure(load(llava_folder)[0]).blocks()
        if block.part in uniform_parts
        for linear in block.linears.values()
    )
    assert sum(on_disk(tmp_path / "out", manifest).values()) == round(0.5 * weights)
    assert sum(manifest["allocation"]["zeros"].values()) == round(0.5 * weights)
    if told == {"vision": "0"}:
        plain = prune(llava_folder, tmp_path / "plain", method="magnitude", sparsity="50%")
        assert manifest["together"] == plain["together"], "the dense part has its share in the total"
        assert manifest["parts"]["vision"]["zeros"] == 0


def test_n_of_m_may_leave_its_most_sensitive_blocks_dense(llava_folder, tiny_data, tmp_path):
    request = {"data": tiny_data, "method": "wanda", "propagate": "dense", **SMALL}
    manifest = prune(llava_folder, tmp_path / "kept", keep_dense=2, **request)
    prune(llava_folder, tmp_path / "all", **request)
    told, dense = manifest["allocation"], load(llava_folder)[0]
    errors = told["error"]
    assert told["kept_dense"] == sorted(errors, key=errors.get, reverse=True)[:2]
    assert all(0 < error < 10 for error in errors.values())
    kept, everything, before = load(tmp_path / "kept")[0], load(tmp_path / "all")[0], dense.state_dict()
    for block in structure(dense).blocks(["vision", "language"]):
        source = before if block.name in told["kept_dense"] else everything.state_dict()
        for name in block.linears:
            assert torch.equal(kept.state_dict()[f"{name}.weight"], source[f"{name}.weight"]), name
    assert sum(on_disk(tmp_path / "kept", manifest).values()) == manifest["together"]["zeros"]
    assert 0.1 < manifest["together"]["sparsity"] < 0.4, "dense blocks count in what is told"


def test_without_data_the_change_of_weights_tells_which_blocks_stay_dense(causal_lm_folder, tmp_path):
    manifest = prune(causal_lm_folder, tmp_path / "out", method="magnitude", keep_dense=1)
    assert manifest["together"]["sparsity"] == 0.25
    with pytest.raises(RessaError, match="keep_dense 2 of 2 blocks"):
        prune(causal_lm_folder, tmp_path / "none", method="magnitude", keep_dense=2)


def test_a_file_of_another_model_is_refused_by_name(llava_folder, causal_lm_folder, tmp_path):
    write_allocation(tmp_path / "a.json", {"unit": "block", "sparsity": {"model.layers.0": 0.5}})
    with pytest.raises(RessaError, match=r"is for another model: unknown block 'model\.layers\.0'"):
        prune(llava_folder, tmp_path / "out", method="magnitude", allocation=tmp_path / "a.json")
    manifest = prune(causal_lm_folder, tmp_path / "out", method="magnitude", allocation=tmp_path / "a.json")
    assert manifest["allocation"]["sparsity"] == {"model.layers.0": 0.5}
    assert {entry["pattern"] for entry in manifest["matrices"].values()} == {"50%"}


def test_a_total_that_language_cannot_hold_is_refused(llava_folder, tmp_path):
    with pytest.raises(RessaError, match=r"total 90% with vision at 0% needs 1\d\d\.\d% of language"):
        prune(llava_folder, tmp_path / "out", method="magnitude", total="90%", vision="0")


@pytest.mark.parametrize("family", ["instructblip_t5", "blip2_opt", "causal_lm"])
def test_other_families_are_allocated_too(family, request, tiny_data, tmp_path):
    folder, data = request.getfixturevalue(f"{family}_folder"), tiny_data
    for name in ("owl", "ecoflap"):
        manifest = prune(folder, tmp_path / name, data=data, method="magnitude", sparsity=0.7, allocation=name, **SMALL)
        assert on_disk(tmp_path / name, manifest) == {p: round(0.7 * n) for p, n in sizes_of(manifest).items()}


# ---- refusals --------------------------------------------------------------------------------------------------------

HALF = {"sparsity": "50%"}
EARLY = {
    "unknown": (HALF | {"allocation": "olw"}, "unknown allocation 'olw': did you mean 'owl'"),
    "N:M": ({"allocation": "owl"}, r"gives every block another sparsity, but 2:4 of vision .*keep_dense"),
    "N:M of a part": (HALF | {"allocation": "owl", "language": "2:4"}, "but 2:4 of language"),
    "no file": ({"allocation": "absent.json"}, r"absent\.json: the allocation cannot be read"),
    "file and sparsity": (HALF | {"allocation": "a.json"}, "already says what each block gets: leave sparsity out"),
    "file and part": ({"allocation": "a.json", "vision": "0"}, "leave vision out"),
    "no data": (HALF | {"allocation": "owl", "method": "magnitude", "data": None}, "allocation 'owl' looks at how"),
    "uniform spread": (HALF | {"spread": 0.1}, "allocation 'uniform' has no setting 'spread'"),
    "spread": (HALF | {"allocation": "owl", "spread": 2.0}, "spread: 2.0 must be at most 1"),
    "uniform budget": (HALF | {"budget": "model"}, "allocation 'uniform' has no budget"),
    "unknown budget": (HALF | {"allocation": "owl", "budget": "parts"}, "unknown budget 'parts': did you mean 'part'"),
    "unlike parts": (HALF | {"allocation": "owl", "budget": "model", "vision": "40%"}, "one sparsity for all parts"),
    "total and sparsity": (HALF | {"total": "50%"}, "leave sparsity out"),
    "total N:M": ({"total": "2:4"}, "with total every sparsity is a share"),
    "total and N:M": ({"total": "50%", "vision": "2:4"}, "vision is 2:4"),
    "total and both": ({"total": "50%", "vision": "40%", "language": "60%"}, "leave vision or language out"),
    "no total": ({"total": "0"}, "total 0 leaves nothing to prune"),
    "total and dense": ({"total": "50%", "keep_dense": 1}, "leave one of them out"),
    "owl and dense": (HALF | {"allocation": "owl", "keep_dense": 1}, "leave one of them out"),
    "less than none": ({"keep_dense": -1}, "keep_dense: -1 must be at least 0"),
    "group of wanda": (
        HALF | {"method": "wanda", "group": "model"},
        "for method magnitude: with 'wanda' say allocation",
    ),
    "group and owl": (HALF | {"method": "magnitude", "group": "part", "allocation": "owl"}, "leave allocation out"),
}


@pytest.mark.parametrize(("wrong", "message"), EARLY.values(), ids=EARLY.keys())
def test_a_wrong_request_is_refused_before_weights_are_loaded(
    wrong, message, llava_folder, tiny_data, tmp_path, monkeypatch
):
    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were loaded before the request was checked")

    monkeypatch.setattr(importlib.import_module("ressa.pruning.verb"), "load_streamed", refuse)
    with pytest.raises(RessaError, match=message) as refusal:
        prune(llava_folder, tmp_path / "out", **({"data": tiny_data} | wrong))
    assert "\n" not in str(refusal.value)
