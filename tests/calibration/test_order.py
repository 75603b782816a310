"""Calibration order and asymmetric target: what a linear is fitted to."""

from __future__ import annotations

from copy import copy

import pytest
import torch
from safetensors.torch import load_file

import ressa
from ressa.calibration.asymmetric import shifts
from ressa.calibration.gather import gather, reading_order
from ressa.calibration.samples import samples
from ressa.calibration.tokens import token_weights
from ressa.calibration.walk import walk
from ressa.errors import RessaError
from ressa.evaluation.blocks import block_errors
from ressa.methods import get
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.patterns import parse
from ressa.pruning.blocks import prune_block
from ressa.statistics import Gram

SMALL = {"samples": 12, "batch_size": 4, "sparsity": "50%"}


def batches_for(folder, data, n=12):
    model, processor = load(folder)
    batches = samples(data, processor, model.config, n, batch_size=4)
    return model, batches, [token_weights(batch, model.config) for batch in batches]


def last_error(folder, dense_folder, data):
    model, processor = load(folder)
    batches = samples(data, processor, model.config, 12, batch_size=4)
    return list(block_errors(model, load(dense_folder)[0], batches).values())[-1]


def test_linears_are_read_in_the_order_of_the_forward_pass(llava_folder, tiny_data):
    model, batches, _ = batches_for(llava_folder, tiny_data)
    orders = {
        visit.block.name: [
            [name.removeprefix(f"{visit.block.name}.") for name in names] for names in reading_order(visit)
        ]
        for visit in walk(model, structure(model).blocks(("vision", "language")), batches)
    }
    assert orders["model.language_model.layers.1"] == [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]
    vision = next(order for name, order in orders.items() if "vision" in name)
    assert vision[-2:] == [["mlp.fc1"], ["mlp.fc2"]]


def test_gathering_for_some_linears_gives_what_gathering_for_all_gives(llava_folder, tiny_data):
    model, batches, tokens = batches_for(llava_folder, tiny_data)
    for visit in walk(model, structure(model).blocks(("language",)), batches):
        everything = gather(visit, Gram, tokens)
        for names in reading_order(visit):
            some = gather(visit, Gram, tokens, names)
            assert list(some) == names
            assert torch.equal(some[names[0]].gram_II, everything[names[0]].gram_II)


@pytest.mark.parametrize("family", ["llava", "blip2_t5", "instructblip_llama"])
def test_layer_by_layer_the_output_projection_is_fitted_to_pruned_attention(family, request, tiny_data, tmp_path):
    folder = request.getfixturevalue(f"{family}_folder")
    weights = {}
    for order in ("block", "layer"):
        told = ressa.prune(folder, tmp_path / order, data=tiny_data, method="sparsegpt", order=order, **SMALL)
        assert told["parts"]["language"]["sparsity"] == pytest.approx(0.5, abs=0.01)
        weights[order] = load_file(tmp_path / order / "model.safetensors")
    first = next(iter(structure(load(folder)[0]).blocks(("vision",)))).linears
    keys = [
        next(key for key in weights["block"] if key.endswith(name.split("vision", 1)[1] + ".weight")) for name in first
    ]
    same = [torch.equal(weights["block"][key], weights["layer"][key]) for key in keys]
    assert same[0], "query and key read what they read before"
    assert not all(same), "later linears do not"


def test_without_a_pruned_prefix_the_asymmetric_target_is_the_weight_itself(llava_folder, tiny_data):
    model, batches, tokens = batches_for(llava_folder, tiny_data)
    dense = load(llava_folder)[0]
    roads = (walk(net, structure(net).blocks(("vision", "language")), batches) for net in (model, dense))
    for visit, original in zip(*roads, strict=True):
        for shift_II in shifts(visit, original, tokens, gather(visit, Gram, tokens)).values():
            assert shift_II.abs().max() == 0


def test_the_asymmetric_target_is_the_least_squares_answer_to_the_dense_outputs(llava_folder, tiny_data):
    model, batches, tokens = batches_for(llava_folder, tiny_data)
    dense = load(llava_folder)[0]
    blocks, originals = (structure(net).blocks(("language",)) for net in (model, dense))
    name = f"{blocks[1].name}.mlp.down_proj"
    read = {}
    with torch.no_grad():
        blocks[0].linears[f"{blocks[0].name}.mlp.up_proj"].weight.mul_(0.3)
    for visit, original in zip(walk(model, blocks, batches), walk(dense, originals, batches), strict=True):
        if visit.block.name != blocks[1].name:
            continue
        grams = gather(visit, Gram, tokens)
        shift_II = shifts(visit, original, tokens, grams, damp=1e-6)[name]
        for which, side in (("x", visit), ("d", original)):
            rows = []
            handle = side.block.linears[name].register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0]))
            for call in side.calls:
                side.run(call)
            handle.remove()
            heard = [x[tokens[i].language_BT != 0] for i, x in enumerate(rows)]
            read[which] = torch.cat(heard).double()
        weight_OI = visit.block.linears[name].weight.detach().double()
        found = weight_OI + weight_OI @ shift_II.double()
        best = torch.linalg.lstsq(read["x"], read["d"] @ weight_OI.T).solution.T
        error = [((read["d"] @ weight_OI.T - read["x"] @ w.T) ** 2).sum().item() for w in (weight_OI, found, best)]
        assert error[1] < 1.05 * error[2] + 1e-9
        assert error[1] < 0.9 * error[0]


def test_an_asymmetric_target_lowers_the_error_on_the_calibration_records(llava_folder, tiny_data, tmp_path):
    errors = []
    for way in (0.0, 0.5):
        out = tmp_path / str(way)
        ressa.prune(llava_folder, out, data=tiny_data, method="admm", asymmetric=way, **SMALL)
        errors.append(last_error(out, llava_folder, tiny_data))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("asked", "said"), [({"order": "layers"}, "did you mean 'layer'"), ({"method": "wanda", "asymmetric": 0.5}, "admm")]
)
def test_orders_and_targets_that_cannot_be_are_refused(asked, said, llava_folder, tiny_data, tmp_path):
    with pytest.raises(RessaError, match=said):
        ressa.prune(llava_folder, tmp_path / "out", data=tiny_data, **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm", "alps", "ria", "ria+refit"])
@pytest.mark.parametrize("written", ["2:4", "50%"])
def test_linears_of_one_input_are_pruned_as_one_matrix_and_come_out_as_if_alone(
    method, written, llava_folder, tiny_data
):
    model, batches, tokens = batches_for(llava_folder, tiny_data)
    run, found = get(method), []
    for visit in walk(model, structure(model).blocks(("language",))[:1], batches):
        dense = [linear.weight.detach().clone() for linear in visit.block.linears.values()]
        patterns = dict.fromkeys(visit.block.linears, parse(written))
        shared = gather(visit, Gram, tokens)
        for inputs in (shared, {name: copy(gram) for name, gram in shared.items()}):
            for linear, weight_OI in zip(visit.block.linears.values(), dense, strict=True):
                linear.weight.data.copy_(weight_OI)
            prune_block(run, visit.block, inputs, patterns)
            found.append([linear.weight.detach().clone() for linear in visit.block.linears.values()])
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
