"""Fused experts: each is a matrix that hears the tokens sent to it, whatever layout its model keeps it in."""

from __future__ import annotations

from copy import deepcopy

import peft
import pytest
import torch
from torch import nn

from families import proof
from ressa import methods, plan
from ressa.calibration.gather import gather, reading_order
from ressa.calibration.logits import decoder_token_ids, logits_at
from ressa.calibration.resume import FinishedBlocks
from ressa.calibration.tokens import TokenWeights, token_weights
from ressa.calibration.walk import walk
from ressa.errors import RessaError
from ressa.model.folder import verify
from ressa.model.matrix import AsLinear, fused, fused_experts, holder, is_expert, transposed, weight_of
from ressa.model.precision import dtypes_of, matrices_of
from ressa.model.shards import Shards
from ressa.model.streamed import Streamed
from ressa.model.structure import same_blocks, structure
from ressa.patterns import NofM
from ressa.pruning.blocks import prune_block
from ressa.repairing.hidden import distances_taken, distilled_blocks, hidden_loss
from ressa.repairing.masked_finetune import kept, put
from ressa.repairing.objective import Objective
from ressa.repairing.recompute import recomputed
from ressa.repairing.reconstruct import Passes, reconstruct, reconstructed_blocks
from ressa.repairing.settings import Repair
from ressa.repairing.sparse_lora import SparseLoraConfig
from ressa.repairing.sparse_lora.experts import MaskedSum, SparseLoraExperts
from ressa.repairing.student import student_of, wrap
from ressa.repairing.teacher import Teacher
from ressa.statistics import Gram, InputNorm

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

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
    model, block, names = _last(case)
    before = {name: block.linears[name].weight.detach().clone() for name in names}
    finished = FinishedBlocks(Shards(tmp_path, model, dtypes_of(model), [block]), Streamed(model))
    finished.keep(block)
    with torch.no_grad():
        for name in names:
            block.linears[name].weight.zero_()
    finished.put_back(block)
    assert all(torch.equal(block.linears[name].weight, before[name]) for name in names)


def test_the_plan_of_repair_counts_the_sums_that_experts_keep(case):
    model, *_ = _last(case)
    blocks = [block.linears.values() for block in structure(model).blocks()]
    most = max(sum(linear.weight.numel() for linear in block if is_expert(linear)) for block in blocks)
    memory = plan(case.folder / "config.json", "2:4")["steps"]["repair"]["memory"]
    assert 4 * most < memory["workspace"] < 4 * most + 3 * 4 * model.num_parameters()  # of one block at a time


# ---- repair ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pruned(case):
    """The model with half of the weights of its last experts zero, the block, and the name of the experts' module."""
    model, block, names = _last(case)
    torch.manual_seed(1)
    with torch.no_grad():
        for name in names:
            weight_OI = block.linears[name].weight
            weight_OI.mul_(torch.rand_like(weight_OI) < 0.5)
    return model, block, holder(model, names[0])


def _adapted(model, module, **told):
    """The model with SparseLoRA on the experts, whose B is not zero."""
    tuned = peft.get_peft_model(model, SparseLoraConfig(rank=2, alpha=4, target_modules=[module], **told))
    (layer,) = (m for m in tuned.modules() if isinstance(m, SparseLoraExperts))
    for b_EOR in layer.sparselora_B["default"].values():
        nn.init.normal_(b_EOR, std=0.1)
    return tuned, layer


def test_the_sum_has_the_gradients_of_finite_differences():
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 5, dtype=torch.float64)
    weight[torch.rand_like(weight) < 0.5] = 0
    left, right = torch.randn(3, 4, 2, dtype=torch.float64), torch.randn(3, 2, 5, dtype=torch.float64)
    inputs = [tensor.requires_grad_(True) for tensor in (left, right)]
    assert torch.autograd.gradcheck(lambda *both: MaskedSum.apply(weight, *both, 0.5, True), inputs)
    assert torch.equal(MaskedSum.apply(weight, left, right, 0.5, True) == 0, weight == 0)


def test_each_expert_is_updated_by_b_times_a_where_it_is_not_zero(pruned):
    model, _, module = pruned
    tuned, layer = _adapted(model, module)
    weights = layer._weights("default")
    for tensor, effective in weights.items():
        a_ERI, b_EOR = layer.sparselora_A["default"][tensor], layer.sparselora_B["default"][tensor]
        for expert in range(len(a_ERI)):
            old_OI = AsLinear(layer.base_layer, tensor, expert).weight
            naive_OI = (old_OI + 2 * b_EOR[expert] @ a_ERI[expert]) * (old_OI != 0)
            new_OI = effective[expert].mT if transposed(layer.base_layer) else effective[expert]
            torch.testing.assert_close(new_OI, naive_OI)
    assert weights.keys() == set(fused(layer.base_layer))
    assert {n for n, p in tuned.named_parameters() if p.requires_grad} == {
        f"base_model.model.{module}.sparselora_{x}.default.{tensor}" for x in "AB" for tensor in weights
    }


def test_merged_experts_answer_as_adapted_ones_and_keep_every_zero(pruned, case):
    model, block, module = pruned
    zeros = {n: linear.weight == 0 for n, linear in block.linears.items()}
    batch = _plain(case)
    before = model(**batch).logits
    tuned, _ = _adapted(model, module)
    adapted = tuned(**batch).logits
    assert not torch.allclose(adapted, before, atol=1e-4)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, adapted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(weight_of(merged, n) == 0, where) for n, where in zeros.items())
    assert not any("sparselora" in name for name, _ in merged.named_parameters())


@pytest.mark.parametrize(
    "told", [{}, {"straight_through": True}, {"dropout": 0.5}], ids=["exact", "through", "dropped"]
)
def test_gradients_reach_every_expert_that_is_sent_tokens_also_when_computed_again(pruned, case, told):
    model, _, module = pruned
    tuned, layer = _adapted(model, module, **told)
    gradients = []
    for _ in range(2):
        tuned.train().zero_grad()
        torch.manual_seed(0)
        tuned(**_plain(case)).logits.square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in layer.named_parameters() if p.requires_grad})
        model.activation_checkpointing_enable({"use_reentrant": False})
    assert len(gradients[0]) == 2 * len(fused(layer.base_layer))
    for name, gradient in gradients[0].items():
        assert gradient.any()
        torch.testing.assert_close(gradients[1][name], gradient)


def test_peft_saves_and_loads_the_update_of_experts(pruned, case, tmp_path):
    model, _, module = pruned
    plain = deepcopy(model)
    tuned, _ = _adapted(model, module)
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(plain, tmp_path)
    assert torch.equal(again(**_plain(case)).logits, tuned(**_plain(case)).logits)


def test_kept_weights_of_experts_are_trained_as_a_vector_and_zeros_stay(pruned, case):
    model, _, module = pruned
    before = {n: p.detach().clone() for n, p in model.get_submodule(module).named_parameters()}
    model.requires_grad_(False)
    put(model, module, kept(model.get_submodule(module)))
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**_plain(case)).logits.square().mean().backward()
    adam.step()
    put(model, module, model.get_submodule(module).restored())
    for name, old in before.items():
        new = model.get_submodule(module).get_parameter(name)
        assert torch.equal(new == 0, old == 0)
        assert not torch.equal(new, old)


def test_blocks_with_experts_are_reconstructed_towards_the_dense_ones(pruned, case):
    model, block, module = pruned
    model.float()
    names = [name for name in block.linears if name.startswith(f"{module}.")]
    zeros = {name: block.linears[name].weight == 0 for name in names}
    batches = [{key: value for key, value in batch.items() if key != "labels"} for batch in case.inputs]
    dense = proof.reload(case.folder).float()
    blocks = reconstructed_blocks(structure(model), names)
    ((before, after),) = reconstruct(model, dense, blocks, batches, Passes(epochs=20, lr=1e-2, seed=0)).values()
    assert after < 0.8 * before
    assert all(torch.equal(weight_of(model, name) == 0, where) for name, where in zeros.items())


@pytest.mark.parametrize("adapter", ["sparse-lora", "masked-ft"])
def test_experts_as_they_are_stored_are_trained_block_by_block_under_autocast(adapter, pruned, case):
    model, _, module = pruned
    settings = Repair(adapter=adapter, train_norms=False, train_connector=False).complete
    losses = []
    for narrow in (True, False):
        ours, dense = deepcopy(model).bfloat16(), proof.reload(case.folder).bfloat16()
        parts = structure(ours)
        batch = next(inputs for inputs in case.inputs if "labels" in inputs)
        products = torch.bfloat16 if narrow else torch.float32
        wrap(student_of(ours, {}), settings, products)
        blocks = same_blocks(distilled_blocks(parts), ours)
        objective = Objective(0.5, 2.0, False, decoder_token_ids(ours.config), [(1.0, blocks)])
        asked, positions_BT = objective.asking(batch)
        said = Teacher(dense, "cpu", blocks, bf16=narrow)(asked, positions_BT)
        taking = distances_taken(blocks, said.outputs, token_weights(batch, ours.config))
        with recomputed(parts.blocks(), ours), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            with taking as taken:
                student_NV = logits_at(ours, asked, positions_BT)
            loss = objective.loss(student_NV, said, batch, positions_BT) + hidden_loss(taken, blocks)
            loss.backward()
        trained = {name: p for name, p in ours.named_parameters() if p.requires_grad and name.startswith(module)}
        assert trained
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in trained.values())
        assert any(p.grad.any() for p in trained.values())
        frozen = [p for p in matrices_of(ours, 2) if not p.requires_grad and p.ndim == 3]
        stored = {p.dtype for p in frozen}
        assert stored == {torch.bfloat16 if narrow else torch.float32}
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
