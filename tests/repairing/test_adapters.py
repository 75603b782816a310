"""The ways to train kept weights side by side: what each keeps, what it refuses, and that it learns."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file
from test_repair import assert_same_zeros, changed, kl_to_dense, prune_by_magnitude, settings_of
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModelForImageTextToText
from transformers.pytorch_utils import Conv1D

import ressa
from ressa.errors import RessaError
from ressa.model.folder import write_folder
from ressa.model.load import load
from ressa.repairing.masked_finetune import KeptLinear
from ressa.repairing.settings import OBJECTIVES
from ressa.repairing.student import merged, student_of, wrap
from ressa.repairing.verb import _zeros

ADAPTERS = ["sparse-lora", "ste", "masked-ft", "lora"]


@pytest.fixture(scope="module")
def pruned(llava_folder, tmp_path_factory):
    return prune_by_magnitude(llava_folder, tmp_path_factory.mktemp("pruned") / "llava")


@pytest.fixture
def run(pruned, llava_folder, tiny_data, tmp_path):
    def run(name: str = "out", **changes):
        settings = {"teacher": llava_folder, "data": tiny_data, "steps": 3, "batch_size": 4} | changes
        return ressa.repair(settings.pop("pruned", pruned), tmp_path / name, **settings)

    return run


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_brings_the_model_nearer_to_the_dense_one_with_every_zero_in_place(
    adapter, run, pruned, llava_folder, tiny_data, tmp_path
):
    more = {"train_norms": False, "train_biases": False, "train_connector": False}
    run(steps=25, lr=3e-3, kl_weight=1.0, adapter=adapter, **more)
    assert kl_to_dense(tmp_path / "out", llava_folder, tiny_data) < 0.6 * kl_to_dense(pruned, llava_folder, tiny_data)
    stored, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pruned))
    for name in before:
        assert torch.equal(stored[name] == 0, before[name] == 0), name
    assert (tmp_path / "out" / "adapter_config.json").is_file() == (adapter == "lora")


# ---- dense LoRA ------------------------------------------------------------------------------------------------------


def lora_student(pruned):
    model, processor = load(pruned)
    student = student_of(model, json.loads((pruned / "ressa.json").read_text()))
    zeros = _zeros(model, student.matrices)
    student = wrap(student, settings_of(adapter="lora", rank=4))
    with torch.no_grad():
        for parameter in student.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return student, processor, zeros


def test_merging_a_dense_lora_fills_the_zeros_and_is_refused_as_a_sparse_folder(pruned, tmp_path):
    student, processor, zeros = lora_student(pruned)
    whole = student.tuner.merge_and_unload()
    name = next(iter(zeros))
    weight = whole.get_submodule(name).weight
    assert (weight == 0).float().mean() < 0.01, "half of them were zero"
    with pytest.raises(RessaError, match="is not zero exactly where it was before repair on disk"):
        write_folder(tmp_path / "out", whole, processor, {}, patterns=zeros)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21 asks for it
def test_a_dense_lora_is_written_beside_the_model_and_transformers_and_peft_put_it_on_top(pruned, tmp_path):
    student, processor, zeros = lora_student(pruned)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = student.model(input_ids=ids).logits
    model, also = merged(student)
    with torch.no_grad():
        without = model(input_ids=ids).logits
    assert not torch.allclose(without, expected, atol=1e-2)
    write_folder(tmp_path / "out", model, processor, {}, patterns=zeros, also=also)
    with torch.no_grad():
        whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()(input_ids=ids).logits
        ours = load(tmp_path / "out")[0](input_ids=ids).logits
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(ours, expected)
    base = AutoModelForImageTextToText.from_pretrained(shutil.copytree(pruned, tmp_path / "base")).eval()
    told = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    assert any("lora_A" in name for name, _ in told.named_parameters())


def test_a_folder_with_a_dense_lora_is_evaluated_with_it_but_neither_pruned_nor_repaired(
    run, llava_folder, tiny_data, tmp_path
):
    run(steps=25, lr=3e-3, kl_weight=1.0, adapter="lora")
    whole = ressa.evaluate(tmp_path / "out", data=tiny_data, against=llava_folder, max_new_tokens=2)["kl"]
    bare = shutil.copytree(tmp_path / "out", tmp_path / "bare")
    (bare / "adapter_config.json").unlink()
    assert whole < 0.8 * ressa.evaluate(bare, data=tiny_data, against=llava_folder, max_new_tokens=2)["kl"]
    for verb in (
        lambda: ressa.prune(tmp_path / "out", tmp_path / "no", method="magnitude"),
        lambda: run("no", pruned=tmp_path / "out"),
    ):
        with pytest.raises(RessaError, match="has an adapter that is not merged"):
            verb()


# ---- masked fine-tuning ----------------------------------------------------------------------------------------------


def sparse(layer):
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.6] = 0
    return layer


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_masked_fine_tuning_trains_kept_weights_only_with_their_exact_gradients(kind):
    torch.manual_seed(0)
    base = sparse(nn.Linear(6, 8) if kind == "linear" else Conv1D(8, 6))
    old = base.weight.detach().clone()
    layer, x = KeptLinear(base), torch.randn(2, 5, 6, requires_grad=True)
    assert layer.kept_N.numel() == int((old != 0).sum())
    dense = old.clone().requires_grad_()
    weight_OI = dense if kind == "linear" else dense.mT
    y = linear(x, weight_OI, base.bias)
    torch.testing.assert_close(layer(x), y)
    direction = torch.randn_like(y)
    expected = torch.autograd.grad(y, (dense, x, base.bias), direction)
    found = torch.autograd.grad(layer(x), (layer.kept_N, x, base.bias), direction)
    masked_OI = expected[0] if kind == "linear" else expected[0].mT
    torch.testing.assert_close(found[0], masked_OI[layer.weight_OI != 0])
    torch.testing.assert_close(found[1:], expected[1:])
    adam = torch.optim.AdamW([layer.kept_N], lr=0.1, weight_decay=0.5)
    layer(x).square().sum().backward()
    adam.step()
    assert {state.numel() for state in adam.state[layer.kept_N].values() if state.ndim} == {layer.kept_N.numel()}
    restored = layer.restored()
    assert restored is base
    assert torch.equal(base.weight == 0, old == 0)
    assert not torch.equal(base.weight, old)


def test_masked_fine_tuning_under_autocast_and_in_float64():
    torch.manual_seed(0)
    layer = KeptLinear(sparse(nn.Linear(6, 8)).double())
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    product = lambda x, kept: type(layer).forward(layer, x)  # noqa: E731
    assert torch.autograd.gradcheck(product, (x, layer.kept_N))
    layer = KeptLinear(sparse(nn.Linear(6, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(3, 6))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.kept_N.grad.dtype == torch.float32


# ---- parts, ranks, objectives ----------------------------------------------------------------------------------------


def test_only_the_chosen_parts_are_trained_and_each_with_its_rank(run, pruned, tmp_path):
    more = {"train_norms": False, "train_biases": False, "train_connector": False}
    told = run("language", parts="language", rank=2, **more)
    assert all("language_model" in name for name in changed(pruned, tmp_path / "language"))
    sizes, model = dict.fromkeys(("vision", "language"), 0), load(pruned)[0]
    for name, entry in told["matrices"].items():
        sizes[entry["part"]] += sum(model.get_submodule(name).weight.shape)
    assert told["trained_parameters"] == 2 * sizes["language"]
    both = run("both", vision_rank=3, language_rank=2, **more)
    assert both["trained_parameters"] == 3 * sizes["vision"] + 2 * sizes["language"]
    with pytest.raises(RessaError, match="unknown part 'speech'"):
        run(parts="language,speech")


def test_a_rank_of_the_connector_puts_updates_on_it_in_place_of_training_it_whole(run, pruned, tmp_path):
    told = run(connector_rank=2, parts="connector", train_norms=False, train_biases=False)
    new = changed(pruned, tmp_path / "out")
    assert new
    assert all("multi_modal_projector" in name and name.endswith("weight") for name in new)
    assert told["trained_parameters"] == 2 * 3 * 32 + 2 * 32


def test_the_objective_of_the_paper_reproduces_loss_schedule_and_ranks(instructblip_t5_folder, tiny_data, tmp_path):
    pruned = prune_by_magnitude(instructblip_t5_folder, tmp_path / "pruned")
    told = ressa.repair(
        pruned,
        tmp_path / "out",
        teacher=instructblip_t5_folder,
        data=tiny_data,
        steps=5,
        batch_size=4,
        objective="paper",
    )
    assert [entry["lr"] for entry in told["history"]] == pytest.approx([1e-6, 1e-4, 1e-4, 1e-4, 1e-4])
    model = load(pruned)[0]
    expected = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            rank = (
                2 if "qformer" in name else {"vision": 4, "language": 8}.get(told["matrices"].get(name, {}).get("part"))
            )
            expected += (rank or 0) * sum(module.weight.shape)
    assert told["trained_parameters"] == expected
    assert OBJECTIVES["paper"]["kl_weight"] == 0.1
    new = changed(pruned, tmp_path / "out")
    assert any("qformer" in name for name in new)
    assert not any("norm" in name.lower() or "projection.bias" in name for name in new)
    assert_same_zeros(pruned, tmp_path / "out")


def test_dropout_and_gradient_checkpointing_and_accumulation_reach_the_training(run):
    ways = {
        "plain": {},
        "checkpointed": {"gradient_checkpointing": True},
        "dropped": {"dropout": 0.5},
        "accumulated": {"batch_size": 2, "accumulate": 2},
    }
    losses = {name: [e["loss"] for e in run(name, steps=4, **more)["history"]] for name, more in ways.items()}
    assert losses["checkpointed"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["dropped"] != losses["plain"]
    # the hidden states are averaged over batches, the rest is exact
    assert losses["accumulated"] == pytest.approx(losses["plain"], rel=0.05)


def test_nothing_to_train_is_refused(run):
    with pytest.raises(RessaError, match="nothing to train"):
        run(parts="connector", train_norms=False, train_biases=False, train_connector=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "lore"}, "did you mean 'lora'"),
        ({"objective": "papers"}, "did you mean 'paper'"),
        ({"dropout": 1.0}, "dropout: 1.0 must be at most 0.99"),
        ({"report_to": "tensorbord"}, "did you mean 'tensorboard'"),
        ({"steps": 0}, "nothing to do without reconstruct"),
        ({"teacher_device": "gpu0"}, "teacher_device 'gpu0' is no device"),
        ({"objective": "paper", "teacher_cache": "x"}, "counts padding"),
        ({"adapter": "masked-ft", "rank": 4}, "without updates: leave rank out"),
        ({"adapter": "masked-ft", "dropout": 0.1}, "without updates: leave dropout out"),
        ({"kl_weight": 0.0, "hidden_weight": 0.0, "teacher_cache": "x"}, "no loss looks.*leave teacher_cache out"),
        ({"kl_weight": 0.0, "hidden_weight": 0.0, "teacher_device": "cpu"}, "no loss looks.*leave teacher_device out"),
        ({"steps": 0, "reconstruct": 1, "teacher_cache": "x"}, "reconstruction reads no cache"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_read(changes, message, tmp_path):
    with pytest.raises(RessaError, match=message):
        ressa.repair("nowhere", tmp_path / "out", teacher="nowhere", data="nowhere", **changes)
