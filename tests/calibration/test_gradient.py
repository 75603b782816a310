"""Tokens weighed by gradient: whose gradient it is, what becomes of it, and that pruning is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ressa import prune
from ressa.calibration.gradient import CLIP, FLOOR, Guided, gradient_sizes
from ressa.calibration.logits import decoder_token_ids, forced
from ressa.calibration.samples import samples
from ressa.calibration.tokens import token_weights
from ressa.data.prompts import IGNORED
from ressa.model.folder import zeros
from ressa.model.load import load
from ressa.model.structure import Block, structure


@pytest.fixture(params=["llava", "instructblip_t5"])
def given(request, tiny_data):
    """A model, its blocks, and a batch of questions of different lengths."""
    net, processor = load(request.getfixturevalue(f"{request.param}_folder"))
    return net, list(structure(net).blocks()), samples(tiny_data, processor, net.config, 4, batch_size=4)[0]


def _by_hand(net, names, batch):
    """|gradient|² at the outputs of the linears of these names, kept by autograd, of the loss written out plainly."""
    outputs = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: (out.retain_grad(), outputs.__setitem__(name, out))[0]
        )
    inputs, wanted = forced(batch, decoder_token_ids(net.config))
    loss = 0
    for logits_TV, labels_T in zip(net(**inputs).logits, wanted, strict=True):
        for logits_V, label in zip(logits_TV[-len(labels_T) :], labels_T, strict=True):
            if label != IGNORED:
                off_V = logits_V.detach().softmax(-1) - nn.functional.one_hot(label, len(logits_V))
                loss = loss - logits_V.log_softmax(-1)[label] / off_V.norm()
    loss.backward()
    return {name: out.grad.square().sum(-1) for name, out in outputs.items()}


def test_sizes_are_those_of_the_gradient_of_the_answers_loss(given):
    net, blocks, batch = given
    sizes = gradient_sizes(net, blocks, batch)
    squares = _by_hand(net, sizes, batch)
    assert {name for block in blocks for name in block.linears} == sizes.keys()
    shared: dict[int, list[str]] = {}
    for name, size in sizes.items():
        shared.setdefault(id(size), []).append(name)
    assert max(map(len, shared.values())) > 1  # query, key and value
    for names in shared.values():
        total = torch.stack([squares[name] for name in names]).sum(0).sqrt()
        torch.testing.assert_close(sizes[names[0]], total, rtol=1e-3, atol=1e-7)


def test_the_model_is_left_as_it_was(given):
    net, blocks, batch = given
    before = [p.requires_grad for p in net.parameters()]
    gradient_sizes(net, blocks, batch)
    assert [p.requires_grad for p in net.parameters()] == before
    assert all(p.grad is None for p in net.parameters())


def _weights(size_BT, mask_BT, image=1.0):
    block = Block("block", "language", nn.Linear(2, 2), {})
    return Guided(mask_BT * image, sizes={"linear": size_BT}).of(
        block, "linear", torch.ones(*size_BT.shape, 2), crossed=False
    )


def test_records_count_alike_and_padding_not_at_all():
    found = _weights(
        torch.tensor([[1.0, 3.0, 9.0], [200.0, 200.0, 200.0]]), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    )
    rest = 1 - FLOOR
    torch.testing.assert_close(found, torch.tensor([[FLOOR + rest * 0.5, FLOOR + rest * 1.5, 0.0], [1.0, 1.0, 1.0]]))


def test_a_kind_of_token_still_counts_as_much_as_it_is_told_to():
    size, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2)
    torch.testing.assert_close(_weights(size, mask, image=0.5), 0.5 * _weights(size, mask))


def test_a_heavy_tail_is_cut_off():
    size = torch.ones(1, 100)
    size[0, 0] = 1000
    found = _weights(size, torch.ones(1, 100))
    mean = size.mean()
    clipped = torch.tensor([CLIP, 1 / mean])
    clipped /= (clipped[0] + 99 * clipped[1]) / 100
    torch.testing.assert_close(found[0, :2], FLOOR + (1 - FLOOR) * clipped)


def test_where_no_answer_depends_on_a_linear_its_tokens_count_alike():
    assert _weights(torch.zeros(1, 3), torch.ones(1, 3)).tolist() == [[1, 1, 1]]


def test_padding_changes_no_weight(given):
    net, blocks, batch = given
    wider = {
        key: value
        if value.is_floating_point()
        else nn.functional.pad(value, (0, 5), value=-100 if key == "labels" else 0)
        for key, value in batch.items()
    }
    block = next(block for block in blocks if block.part == "language")
    name = next(iter(block.linears))
    found = []
    for one in (batch, wider):
        sizes = gradient_sizes(net, blocks, one)
        guided = Guided(**vars(token_weights(one, net.config)), sizes=sizes)
        weights = guided.of(block, name, torch.ones(*sizes[name].shape, 2), crossed=False)
        found.append(weights[weights != 0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_prune_weighs_tokens_so(llava_folder, tiny_data, tmp_path):
    asked = {"data": tiny_data, "method": "wanda", "sparsity": "50%", "samples": 8}
    plain = prune(llava_folder, tmp_path / "plain", **asked)
    guided = prune(llava_folder, tmp_path / "guided", token_weights="gradient", **asked)
    assert guided["together"] == plain["together"]
    one, other = (load(tmp_path / name)[0].state_dict() for name in ("plain", "guided"))
    changed = [name for name in zeros(tmp_path / "guided") if name in plain["matrices"]]
    assert any(not torch.equal(one[f"{name}.weight"], other[f"{name}.weight"]) for name in changed)
