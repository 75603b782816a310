"""Fused experts: each is a matrix that hears the tokens sent to it, whatever layout its model keeps it in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from families import proof
from ressa import methods
from ressa.blocks import prune_block
from ressa.calibration.gather import gather, reading_order
from ressa.calibration.tokens import TokenWeights
from ressa.calibration.walk import walk
from ressa.errors import RessaError
from ressa.inputs import Gram, InputNorm
from ressa.model.folder import verify
from ressa.model.matrix import fused_experts, is_expert, transposed, weight_of
from ressa.model.structure import structure
from ressa.patterns import NofM
from ressa.resume import FinishedBlocks

TYPES = ["qwen3_vl_moe", "aria", "llama4"]  # kept as (E, O, I); as (E, I, O); as (E, I, O), all tokens for each expert


@pytest.fixture(scope="module", params=TYPES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return proof.build(request.param, folder, folder)


def _last(case):
    """The model, its last block with experts, and their names."""
    model = proof.reload(case.folder)
    blocks = structure(model).blocks(["language"])
    block = next(block for block in reversed(blocks) if any(map(is_expert, block.linears.values())))
    return model, block, [name for name, linear in block.linears.items() if is_expert(linear)]


def _routed(model, block, batch):
    """What the experts' module is given, and how often each token goes to each expert, (E, T)."""
    module = next(linear.module for linear in block.linears.values() if is_expert(linear))
    found = {}
    handle = module.register_forward_pre_hook(lambda _, args: found.update(args=args))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    x, *routing = found["args"]
    if not routing:  # Llama 4: copies of all tokens, zero where they are not sent
        x_ETI = x.reshape(module.num_experts, -1, x.shape[-1])
        return x_ETI, x_ETI.any(-1)
    sent_ET = torch.stack([(routing[0] == expert).any(-1) for expert in range(module.num_experts)])
    return x.expand(module.num_experts, *x.shape), sent_ET


def _plain(case):
    """The inputs without padding, of one batch."""
    batch = {key: value for key, value in case.inputs[1].items() if key != "labels"}
    assert batch["attention_mask"].all()
    return batch


def test_each_expert_is_a_matrix_of_its_own_and_its_router_is_kept(case):
    model, block, experts = _last(case)
    assert len(experts) == 8
    for name in experts:
        view, own = block.linears[name].weight, weight_of(model, name)
        assert view.shape[1] in (64, 96)
        assert view.data_ptr() == own.data_ptr()
    down = [block.linears[name].weight.shape for name in experts if ".down_proj." in name]
    assert down == [(64, 96)] * 4
    kept = structure(model).kept
    routers = [n for n, m in block.module.named_modules() if isinstance(m, nn.Linear) and m.out_features == 4]
    assert all(kept[f"{block.name}.{name}"] == "chooses among experts" for name in routers)


def test_an_expert_hears_the_tokens_that_are_sent_to_it_and_no_others(case):
    model, block, experts = _last(case)
    batch = _plain(case)
    x_ETI, sent_ET = _routed(model, block, batch)
    visit = next(walk(model, [block], [batch]))
    found = gather(visit, InputNorm, [TokenWeights()])
    for name in (name for name in experts if "up_proj" in name):
        expert = block.linears[name].expert
        heard_TI = x_ETI[expert][sent_ET[expert]]
        if len(heard_TI) == 0:
            assert name not in found
            continue
        assert found[name].tokens == len(heard_TI)
        torch.testing.assert_close(found[name].norm_I, heard_TI.square().mean(0).sqrt())
        down = name.replace("gate_up_proj", "down_proj").replace("up_proj", "down_proj")
        assert found[down].tokens == len(heard_TI)


def test_what_an_expert_reads_in_the_middle_is_what_its_gate_lets_through(case):
    model, block, experts = _last(case)
    visit = next(walk(model, [block], [_plain(case)]))
    module = block.linears[experts[0]].module
    found, (x_ETI, sent_ET) = gather(visit, Gram, [TokenWeights()]), _routed(model, block, _plain(case))
    expert = max(range(4), key=lambda e: int(sent_ET[e].sum()))
    names = {
        linear.tensor: name for name, linear in block.linears.items() if is_expert(linear) and linear.expert == expert
    }
    x_TI = x_ETI[expert][sent_ET[expert]]
    gate, up = (x_TI @ block.linears[names["gate_up_proj"]].weight.T).chunk(2, -1)
    middle_TI = (module.act_fn(gate) * up).detach()
    torch.testing.assert_close(found[names["down_proj"]].gram_II, middle_TI.T @ middle_TI / len(middle_TI))


def test_padding_never_counts_and_tokens_count_as_they_are_told_to(case):
    model, block, experts = _last(case)
    batch = _plain(case)
    x_ETI, sent_ET = _routed(model, block, batch)
    weights_BT = torch.ones(batch["input_ids"].shape)
    weights_BT[:, ::2], weights_BT[:, 1::4] = 0, 0.25
    visit = next(walk(model, [block], [batch]))
    found = gather(visit, InputNorm, [TokenWeights(language_BT=weights_BT)])
    for name in (name for name in experts if "up_proj" in name):
        expert = block.linears[name].expert
        counts_T = (weights_BT.reshape(-1) * sent_ET[expert])[:, None]
        if not counts_T.any():
            assert name not in found
            continue
        assert found[name].tokens == pytest.approx(counts_T.sum().item())
        expected = ((x_ETI[expert].square() * counts_T).sum(0) / counts_T.sum()).sqrt()
        torch.testing.assert_close(found[name].norm_I, expected)


def test_experts_that_no_token_reached_are_pruned_by_magnitude_with_a_warning_and_linears_are_refused(case):
    _, block, experts = _last(case)
    patterns, magnitude = dict.fromkeys(block.linears, NofM(2, 4)), methods.get("magnitude")
    expected = {name: magnitude(block.linears[name].weight, None, NofM(2, 4)).clone() for name in experts}
    run = methods.get("sparsegpt")
    with pytest.warns(UserWarning, match=r"no calibration token was sent to .* and 7 more: pruned by magnitude"):
        prune_block(run, block, {}, patterns, experts)
    assert all(torch.equal(block.linears[name].weight, expected[name]) for name in experts)
    linear = next(name for name in block.linears if name not in experts)
    with pytest.raises(RessaError, match="no calibration token reaches"):
        prune_block(run, block, {}, patterns, [linear])


def test_layer_by_layer_experts_come_last(case):
    model, block, experts = _last(case)
    turns = reading_order(next(walk(model, [block], [_plain(case)])))
    assert not {name for turn in turns for name in turn} & set(experts)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:no calibration token was sent")
def test_a_broken_expert_is_found_on_disk(case, tmp_path):
    model, block, experts = _last(case)
    patterns = dict.fromkeys(experts, NofM(2, 4))
    prune_block(methods.get("magnitude"), block, dict.fromkeys(block.linears), dict.fromkeys(block.linears, NofM(2, 4)))
    model.save_pretrained(tmp_path / "whole")
    verify(tmp_path / "whole", patterns)
    with torch.no_grad():
        weight_of(model, experts[-1])[0, :3] = 1
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(RessaError, match=rf"{experts[-1]} is not 2:4 on disk"):
        verify(tmp_path / "broken", patterns)


def test_shapes_tell_how_experts_are_kept_where_the_module_does_not():
    class Experts(nn.Module):
        def __init__(self, up, down):
            super().__init__()
            self.num_experts = 3
            self.gate_up_proj, self.down_proj = (nn.Parameter(torch.randn(3, *shape)) for shape in (up, down))

    assert not transposed(Experts((24, 8), (8, 12)))
    assert transposed(Experts((8, 24), (12, 8)))
    views = fused_experts(Experts((8, 24), (12, 8)))
    assert {name: tuple(view.weight.shape) for name, view in views.items() if name.endswith(".2")} == {
        "gate_up_proj.2": (24, 8),
        "down_proj.2": (8, 12),
    }
    assert fused_experts(nn.Linear(3, 3)) == {}


def test_what_a_stopped_run_had_pruned_is_put_back(case, tmp_path):
    _, block, names = _last(case)
    before = {name: block.linears[name].weight.detach().clone() for name in names}
    finished = FinishedBlocks(tmp_path)
    finished.keep(block)
    with torch.no_grad():
        for name in names:
            block.linears[name].weight.zero_()
    finished.put_back(block)
    assert all(torch.equal(block.linears[name].weight, before[name]) for name in names)
