"""Allocations: budgets met to the weight, their authors' ratios where these are right, and files that read back."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ressa.allocation
from ressa import prune
from ressa.allocation import ALLOCATIONS, budget, by_modality
from ressa.allocation.arithmetic import arithmetic
from ressa.allocation.budget import MOST, whole
from ressa.allocation.dlp import dlp, median
from ressa.allocation.ecoflap import STEP, ecoflap, saliency, zeroth_order
from ressa.allocation.file import read_allocation, write_allocation
from ressa.allocation.keep_dense import most_sensitive
from ressa.allocation.magnitude import magnitude
from ressa.allocation.owl import outliers, owl
from ressa.allocation.uniform import uniform
from ressa.calibration.data import CalibrationData
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.methods import METHODS, get
from ressa.model.folder import read_manifest, zeros
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.patterns import Unstructured

AUTHORS = load_file(Path(__file__).parents[1] / "references" / "owl.safetensors")
SHARES = {"uniform": uniform, "arithmetic": arithmetic, "owl": owl, "dlp": dlp, "ecoflap": ecoflap}
MEASURED = ["owl", "dlp", "ecoflap", "ecoflap-zeroth"]
SMALL = {"samples": 4, "batch_size": 4}


def counts(sparsity, weights) -> dict[str, int]:
    return {name: round(share * weights[name]) for name, share in sparsity.items()}


def blocks_of_theirs() -> list[list[torch.Tensor]]:
    """The Wanda scores of the five blocks that the authors' programs saw."""
    names = [("up", "norm_up"), ("down", "norm_down")]
    return [[AUTHORS[w][i].float().abs() * AUTHORS[n][i] for w, n in names] for i in range(5)]


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [ressa.allocation, budget, by_modality])
def test_examples_in_docstrings_are_true(module):
    assert doctest.testmod(importlib.import_module(module.__name__)).failed == 0


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", SHARES)
def test_the_zeros_of_all_blocks_add_up_to_the_budget_to_the_weight(name, seed):
    draw = random.Random(seed)
    weights = {f"b{i}": draw.randint(50, 5000) for i in range(draw.randint(1, 12))}
    scores = {block: draw.choice([0.0, draw.random(), 100 * draw.random()]) for block in weights}
    budget = round(draw.choice([0.003, 0.05, 0.5, 0.7, 0.95]) * sum(weights.values()))
    found = counts(SHARES[name](scores, weights, budget), weights)
    assert sum(found.values()) == budget
    even = budget / sum(weights.values())
    most = {"uniform": even, "ecoflap": even + 0.1}.get(name, 1)
    for block, n in weights.items():
        assert 0 <= found[block] <= math.ceil(max(min(most, MOST), even) * n)


@pytest.mark.parametrize("score", [0.0, 3.5])
@pytest.mark.parametrize("name", [name for name in SHARES if name != "arithmetic"])
def test_equal_scores_share_out_evenly(name, score):
    weights = {"a": 700, "b": 100, "c": 300}
    found = counts(SHARES[name](dict.fromkeys(weights, score), weights, 550), weights)
    assert found == {"a": 350, "b": 50, "c": 150}


def test_arithmetic_rises_in_equal_steps_from_the_first_block_to_the_last():
    found = arithmetic({}, dict.fromkeys("zaby", 1000), 2400, spread=0.15)
    assert list(found.values()) == [0.45, 0.55, 0.65, 0.75]
    assert list(found) == list("zaby")
    assert arithmetic({}, dict.fromkeys("ab", 1000), 1000, spread=0) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(("share", "sign"), [(owl, -1), (dlp, 1), (ecoflap, -1)])
def test_which_way_scores_point(share, sign):
    sparsity = share({"a": 1.0, "b": 2.0, "c": 4.0}, dict.fromkeys("abc", 1000), 1500)
    assert sorted(sparsity, key=lambda name: sign * sparsity[name]) == ["a", "b", "c"]
    assert max(sparsity.values()) > min(sparsity.values()) + 0.05


@pytest.mark.parametrize(("share", "reach"), [(owl, 0.08), (dlp, 0.15)])
def test_the_spread_is_all_there_is_between_the_first_and_the_last(share, reach):
    weights = {"a": 10_000, "b": 30_000, "c": 20_000}
    sparsity = share({"a": 1.0, "b": 2.0, "c": 9.0}, weights, 36_000)
    assert max(sparsity.values()) - min(sparsity.values()) == pytest.approx(2 * reach, abs=1e-3)
    assert share({"a": 1.0, "b": 2.0, "c": 9.0}, weights, 36_000, spread=0.0) == dict.fromkeys(weights, 0.6)


@pytest.mark.parametrize("share", [owl, dlp])
def test_less_sparsity_than_spread_never_gets_below_none(share):
    weights = dict.fromkeys("abcd", 1000)
    found = counts(share({"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}, weights, 200), weights)
    assert min(found.values()) == 0
    assert sum(found.values()) == 200


@pytest.mark.parametrize("share", [owl, dlp, ecoflap])
def test_scores_that_are_no_numbers_are_refused(share):
    with pytest.raises(RessaError, match="NaN"):
        share({"a": float("nan"), "b": 1.0}, {"a": 10, "b": 10}, 10)


def test_a_block_is_never_pruned_away_and_too_many_zeros_are_refused():
    found = counts(ecoflap({"a": 0.0, "b": 1.0}, {"a": 1000, "b": 1000}, 1900), {"a": 1000, "b": 1000})
    assert found == {"a": 990, "b": 910}
    with pytest.raises(RessaError, match="do not fit"):
        whole({"a": 5.0}, 5, {"a": 4})


# ---- the authors' ----------------------------------------------------------------------------------------------------


def test_owl_counts_the_outliers_that_its_authors_count():
    assert [outliers(scores) for scores in blocks_of_theirs()] == pytest.approx(AUTHORS["outliers"].tolist(), abs=1e-12)


@pytest.mark.parametrize("sparsity", [50, 70])
def test_owl_gives_its_authors_ratios(sparsity):
    weights = dict.fromkeys("abcde", 2 * 48 * 32)
    scores = dict(zip("abcde", AUTHORS["outliers"].tolist(), strict=True))
    found = owl(scores, weights, round(sparsity / 100 * sum(weights.values())))
    theirs = (1 - AUTHORS[f"keep {sparsity}%"]).tolist()
    assert list(found.values()) == pytest.approx(theirs, abs=1 / 3072)


def test_owl_does_not_keep_more_than_everything_as_its_authors_do_at_5_per_cent():
    # Theirs asks blocks for up to 102 %, and prunes these by 1 %: 4.5 % are zero in the end
    assert AUTHORS["keep 5%"].max() > 1.01
    weights = dict.fromkeys("abcde", 3072)
    found = owl(dict(zip("abcde", AUTHORS["outliers"].tolist(), strict=True)), weights, 768)
    assert sum(counts(found, weights).values()) == 768
    assert min(found.values()) == 0


def test_dlp_gives_its_authors_ratios_from_their_means_and_the_papers_from_medians():
    weights, blocks = dict.fromkeys("abcde", 3072), blocks_of_theirs()
    means = [torch.cat([s.flatten() for s in scores]).mean().item() for scores in blocks]
    found = dlp(dict(zip("abcde", means, strict=True)), weights, round(0.7 * 5 * 3072))
    assert list(found.values()) == pytest.approx((1 - AUTHORS["dlp keep 70%"]).tolist(), abs=1 / 3072)
    assert median([torch.tensor([[5.0, 1.0]]), torch.tensor([[2.0]])]) == 2.0


def test_ecoflap_gives_its_authors_ratios_where_they_meet_their_budget():
    found = ecoflap({"a": 1.0, "b": 2.0, "c": 5.0, "d": 2.0}, dict.fromkeys("abcd", 3000), 6000)
    assert list(found.values()) == pytest.approx([0.56, 0.52, 0.40, 0.52], abs=1e-6)


def test_ecoflap_meets_the_budget_where_its_authors_keep_two_weights_more():
    # ylsung/ECoFLaP 59dac0a: what is to be taken off too full groups is added, 12290 for 12288
    theirs = [0.5517578125, 0.5035806894302368, 0.4407551884651184, 0.5035806894302368]
    assert round(sum(6144 * (1 - sparsity) for sparsity in theirs)) == 12290
    weights = dict.fromkeys("abcd", 6144)
    found = ecoflap({"a": 1.0, "b": 2.0, "c": 3.3, "d": 2.0}, weights, 12288)
    assert list(found.values()) == pytest.approx(theirs, abs=3 / 6144)
    assert sum(counts(found, weights).values()) == 12288


def test_ecoflap_hands_on_what_a_full_block_cannot_keep():
    weights = {"a": 4096, "b": 4096, "c": 800, "d": 4096}
    scores = {"a": 1 / 4096, "b": 2 / 4096, "c": 500 / 800, "d": 2 / 4096}
    found = ecoflap(scores, weights, 6544)
    assert found["c"] == 0
    assert [found[name] for name in "abd"] == pytest.approx([0.5593, 0.5190, 0.5190], abs=1e-3)


# ---- what a method makes of an exact count ---------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [200, 301])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_matrix_the_zeros_it_is_allotted(method, zeros):
    draw, run, pattern = torch.Generator().manual_seed(0), get(method), Unstructured(zeros / 480, "even")
    inputs = run.needs and run.needs(24)
    if inputs:
        inputs.add(torch.randn(60, 24, generator=draw) @ torch.randn(24, 24, generator=draw))
    gone_O = (run(torch.randn(20, 24, generator=draw), inputs, pattern) == 0).sum(dim=1)
    assert gone_O.sum() == zeros
    assert gone_O.tolist() == pattern.dropped_O(20, 24).tolist()


# ---- magnitude over many matrices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.6])
def test_magnitude_takes_the_smallest_of_all_matrices(share, dtype):
    draw = torch.Generator().manual_seed(0)
    matrices = {f"m{i}": (torch.randn(8, 6 + i, generator=draw) * (i + 1)).to(dtype) for i in range(3)}
    sizes = {name: weight.numel() for name, weight in matrices.items()}
    gone = round(share * sum(sizes.values()))
    everything = torch.cat([weight.flatten() for weight in matrices.values()]).float().abs()
    order = everything.argsort(stable=True)[:gone]
    starts = [0, *torch.tensor(list(sizes.values())).cumsum(0).tolist()]
    wanted = [int(((order >= a) & (order < b)).sum()) for a, b in pairwise(starts)]
    assert list(counts(magnitude(matrices, sizes, gone), sizes).values()) == wanted


def test_magnitude_counts_ties_exactly_and_leaves_every_matrix_a_weight():
    matrices = {"a": torch.ones(2, 4), "b": torch.full((2, 4), 0.1), "c": torch.zeros(2, 4)}
    sizes = dict.fromkeys("abc", 8)
    assert counts(magnitude(matrices, sizes, 17), sizes) == {"a": 3, "b": 7, "c": 7}
    with pytest.raises(RessaError, match="more than 3 matrices can hold"):
        magnitude(matrices, sizes, 22)


# ---- by modality -----------------------------------------------------------------------------------------------------


def test_a_dense_part_is_made_up_for_by_the_other_as_the_formula_says():
    weights = {"vision": 980_001, "language": 6_476_003}
    found = by_modality.by_modality(0.5, {"vision": 0.0}, weights)
    assert sum(found.values()) == round(0.5 * 7_456_004)
    assert found["language"] / weights["language"] == pytest.approx(0.5 * 7_456_004 / 6_476_003, abs=1e-6)
    three = by_modality.by_modality(0.5, {"connector": 0.2}, {"vision": 200, "connector": 100, "language": 700})
    assert three == {"vision": 107, "connector": 20, "language": 373}


@pytest.mark.parametrize(
    ("total", "told", "line"),
    [
        (0.9, {"vision": 0.0}, r"total 90% with vision at 0% needs 112\.5% of language: .* less than 80\.0%"),
        (0.8, {"vision": 0.0}, r"needs 100\.0% of language"),
        (0.1, {"vision": 0.9}, r"total 10% with vision at 90% needs -10\.0% of language: say at least 18\.0%"),
    ],
)
def test_what_the_other_part_cannot_make_up_for_is_refused_in_one_line(total, told, line):
    with pytest.raises(RessaError, match=line) as refusal:
        by_modality.by_modality(total, told, {"vision": 200, "language": 800})
    assert "\n" not in str(refusal.value)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_allocation_reads_back_bit_by_bit(tmp_path):
    sparsity = {f"b{i}": random.Random(i).random() for i in range(100)} | {"none": 0.0, "third": 1 / 3}
    write_allocation(tmp_path / "a.json", {"unit": "block", "sparsity": sparsity, "name": "owl"})
    saved = read_allocation(tmp_path / "a.json")
    assert (saved.unit, saved.sparsity) == ("block", sparsity)
    assert json.loads((tmp_path / "a.json").read_text()).keys() == {"unit", "sparsity"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[1]", "is no allocation"),
        ('{"unit": "block"}', "is no allocation"),
        ('{"unit": "block", "sparsity": {}}', "is no allocation"),
        ('{"unit": "blok", "sparsity": {"a": 0.5}}', "unknown unit 'blok': did you mean 'block'"),
        ('{"unit": "block", "sparsity": {"a": 1.0}}', r"sparsity of a is 1\.0"),
        ('{"unit": "block", "sparsity": {"a": NaN}}', "sparsity of a is nan"),
        ('{"unit": "block", "sparsity": {"a": "half"}}', "sparsity of a is 'half'"),
        ('{"allocation": {"name": "uniform"}}', "pruned uniformly"),
    ],
)
def test_a_file_that_is_no_allocation_is_refused_in_one_line(text, told, tmp_path):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(RessaError, match=told) as refusal:
        read_allocation(tmp_path / "a.json")
    assert str(refusal.value).startswith(str(tmp_path / "a.json"))
    assert "\n" not in str(refusal.value)


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
