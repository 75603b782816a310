"""The walk changes nothing but what its caller changes, and every batch meets every block."""

from __future__ import annotations

import contextvars
import copy
import gc
from types import SimpleNamespace

import pytest
import torch
from greenlet import greenlet
from torch import nn

from ressa.calibration.gather import gather
from ressa.calibration.samples import samples
from ressa.calibration.tokens import TokenWeights, token_weights
from ressa.calibration.walk import walk
from ressa.errors import RessaError
from ressa.model.load import load
from ressa.model.structure import Block, structure
from ressa.statistics import Gram, InputNorm

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama"]


@pytest.fixture(params=FAMILIES)
def family(request, tiny_data):
    """(model, blocks, batches of different lengths) of each family."""
    return _prepared(request.getfixturevalue(f"{request.param}_folder"), tiny_data)


@pytest.fixture
def llava(llava_folder, tiny_data):
    return _prepared(llava_folder, tiny_data)


def _prepared(folder, data):
    model, processor = load(folder)
    batches = samples(data, processor, model.config, 10, batch_size=4)
    return model, structure(model).blocks(), batches


def _plain(model, batches):
    with torch.no_grad():
        return [model(**batch).logits for batch in batches]


def _equal(walked, plain):
    assert len(walked) == len(plain)
    assert all(torch.equal(a.logits, b) for a, b in zip(walked, plain, strict=True))


def _halve(block):
    with torch.no_grad():
        for linear in block.linears.values():
            linear.weight[:, ::2] = 0


def _tokens(model, batches):
    return [token_weights(batch, model.config) for batch in batches]


def test_logits_under_the_walk_equal_those_of_a_plain_forward_bit_for_bit(family):
    model, blocks, batches = family
    plain, outputs = _plain(model, batches), []
    visited = []
    for visit in walk(model, blocks, batches, outputs=outputs):
        gather(visit, Gram, _tokens(model, batches))
        visited.append(visit.block.name)
    assert visited == [block.name for block in blocks]
    _equal(outputs, plain)


def test_sequential_batches_go_on_through_the_pruned_blocks(family):
    model, blocks, batches = family
    before, outputs = _plain(model, batches), []
    for visit in walk(model, blocks, batches, outputs=outputs):
        _halve(visit.block)
    _equal(outputs, _plain(model, batches))
    assert not torch.equal(outputs[0].logits, before[0])


def test_dense_batches_go_on_through_the_blocks_as_they_were(family):
    model, blocks, batches = family
    pruned = copy.deepcopy(model)
    for block in structure(pruned).blocks():
        _halve(block)
    plain, outputs = _plain(model, batches), []
    for visit in walk(model, blocks, batches, propagate="dense", outputs=outputs):
        gather(visit, InputNorm, _tokens(model, batches))
        _halve(visit.block)
        gather(visit, InputNorm, _tokens(model, batches))  # of the pruned block, which no batch goes on with
    _equal(outputs, plain)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pruned.parameters(), strict=True))


def test_statistics_behind_a_pruned_block_differ_between_sequential_and_dense(llava):
    model, blocks, batches = llava
    norms = {}
    for propagate in ("sequential", "dense", "untouched"):
        trial = copy.deepcopy(model)
        how = "sequential" if propagate == "untouched" else propagate
        for visit in walk(trial, structure(trial).blocks(), batches, propagate=how):
            found = gather(visit, InputNorm, _tokens(trial, batches))
            norms[propagate, visit.block.name] = next(iter(found.values())).norm_I
            if propagate != "untouched":
                _halve(visit.block)
    first, second = blocks[0].name, blocks[1].name
    assert torch.equal(norms["sequential", first], norms["dense", first])
    assert not torch.allclose(norms["sequential", second], norms["dense", second], rtol=1e-3)
    for block in blocks:
        assert torch.equal(norms["dense", block.name], norms["untouched", block.name])


def test_batches_that_skip_a_block_wait_at_the_next_one_they_share(llava):
    model, blocks, batches = llava
    text_only = {key: value for key, value in batches[0].items() if key != "pixel_values"}
    text_only["input_ids"] = text_only["input_ids"].clamp(min=5)  # without the picture's placeholders
    mixed = [batches[1], text_only, batches[2]]
    plain, outputs = _plain(model, mixed), []
    there = {
        visit.block.name: [call.batch for call in visit.calls] for visit in walk(model, blocks, mixed, outputs=outputs)
    }
    assert list(there) == [block.name for block in blocks]
    parts = {block.name: block.part for block in blocks}
    assert all(there[name] == ([0, 1, 2] if parts[name] == "language" else [0, 2]) for name in parts)
    _equal(outputs, plain)


def test_every_forward_is_restored_after_an_exception_in_one_batch(llava):
    model, blocks, batches = llava
    plain = _plain(model, batches)
    last = batches[-1]["input_ids"].shape[0]
    assert last != batches[0]["input_ids"].shape[0]

    def fail(module, args, kwargs):
        if (args[0] if args else kwargs["hidden_states"]).shape[0] == last:
            raise ArithmeticError("in one batch only")

    alive = _alive()
    handle = blocks[-1].module.self_attn.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(ArithmeticError, match="in one batch only"):
        for _ in walk(model, blocks, batches):
            pass
    handle.remove()
    assert not any("forward" in vars(block.module) for block in blocks)
    assert _alive() == alive
    assert all(torch.equal(a, b) for a, b in zip(_plain(model, batches), plain, strict=True))


def test_every_forward_is_restored_when_the_caller_stops_early(llava):
    model, blocks, batches = llava
    alive = _alive()
    blocks[1].module.forward = marked = blocks[1].module.forward  # as accelerate's hooks leave it
    for _ in walk(model, blocks, batches):
        break
    gc.collect()
    assert [block.name for block in blocks if "forward" in vars(block.module)] == [blocks[1].name]
    assert blocks[1].module.forward is marked
    assert _alive() == alive


def test_a_forward_sees_the_context_of_its_caller(llava):
    model, blocks, batches = llava
    setting = contextvars.ContextVar("setting", default="forgotten")
    setting.set("seen")
    told = set()
    handle = blocks[0].module.register_forward_pre_hook(lambda *_: told.add(setting.get()))
    for _ in walk(model, blocks, batches):
        pass
    handle.remove()
    assert told == {"seen"}


def test_the_caller_keeps_its_gradients_and_the_model_its_mode(llava):
    model, blocks, batches = llava
    model.train()
    modes = {(torch.is_grad_enabled(), model.training) for _ in walk(model, blocks, batches)}
    assert modes == {(True, False)}
    assert model.training


def test_blocks_run_without_a_cache_although_the_model_would_use_one(llava):
    model, blocks, batches = llava
    assert model.config.text_config.use_cache
    language = [block for block in blocks if block.part == "language"]
    for visit in walk(model, language, batches):
        assert all(call.kwargs.get("past_key_values") is None for call in visit.calls)


def test_one_block_at_a_time_stands_on_the_device(llava, monkeypatch):
    model, blocks, batches = llava
    plain, outputs = _plain(model, batches), []
    names = {id(block.module): block.name for block in blocks}
    moves, move = [], nn.Module.to

    def spy(module, *args, **kwargs):
        moves.append((names[id(module)], args[0]))
        return move(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", spy)
    device = torch.device("cpu", 0)  # another name for home, so that both ways can be told apart
    for visit in walk(model, blocks, batches, device=device, outputs=outputs):
        assert moves[-1] == (visit.block.name, device)
        gather(visit, InputNorm, _tokens(model, batches))
        assert moves[-1] == (visit.block.name, device)
    assert all(into[0] == back[0] for into, back in zip(moves[::2], moves[1::2], strict=True))
    assert {device for _, device in moves[::2]} == {device}
    assert {back for _, back in moves[1::2]} == {torch.device("cpu")}
    _equal(outputs, plain)


def test_progress_tells_how_many_blocks_are_done(llava):
    model, blocks, batches = llava
    told = []
    for _ in walk(model, blocks, batches, progress=lambda *args: told.append(args)):
        pass
    total = len(blocks)
    assert told == [(done, total, block.name) for done, block in enumerate(blocks)] + [(total, total, "")]


def test_an_unknown_way_to_propagate_is_refused(llava):
    model, blocks, batches = llava
    with pytest.raises(RessaError, match="did you mean 'dense'"):
        next(walk(model, blocks, batches, propagate="dens"))


class Toy(nn.Module):
    """Pictures (B, crops, T, 8) through a tower one crop after another, then their sum through a decoder."""

    device, training = torch.device("cpu"), False

    def __init__(self, order="crops"):
        super().__init__()
        self.tower = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)])
        self.decoder = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)])
        self.order = order

    def forward(self, pixels, use_cache=None):
        total = 0
        for crop in pixels.unbind(1):
            for block in self.tower:
                crop = block(crop)
                if self.order == "recurrent":
                    crop = block(crop)
            total = total + crop
        for block in self.decoder:
            total = block(total)
        return SimpleNamespace(logits=total)


def _toy(order):
    torch.manual_seed(0)
    model = Toy(order)
    blocks = [
        Block(name, "vision", model.get_submodule(name), {f"{name}.0": model.get_submodule(f"{name}.0")})
        for name in ("tower.0", "tower.1", "decoder.0", "decoder.1")
    ]
    return model, blocks, [{"pixels": torch.randn(2, crops, 3, 8)} for crops in (3, 1, 3)]


@pytest.mark.parametrize("propagate", ["sequential", "dense"])
@pytest.mark.parametrize(("order", "times"), [("crops", 1), ("recurrent", 2)])
def test_a_block_that_is_entered_several_times_gathers_all_before_it_is_pruned_once(order, times, propagate):
    model, blocks, batches = _toy(order)
    before, outputs, entries, heard = _plain(model, batches), [], {}, {}
    for visit in walk(model, blocks, batches, propagate=propagate, outputs=outputs):
        entries[visit.block.name] = [call.batch for call in visit.calls]
        heard |= gather(visit, InputNorm, [TokenWeights()] * 3)
        _halve(visit.block)
    often = [0] * 3 * times + [1] * times + [2] * 3 * times
    assert entries == {"tower.0": often, "tower.1": often, "decoder.0": [0, 1, 2], "decoder.1": [0, 1, 2]}
    assert heard["tower.0.0"].tokens == 2 * 3 * len(often)
    _equal(outputs, before if propagate == "dense" else _plain(model, batches))
    assert all((linear.weight[:, ::2] == 0).all() for block in blocks for linear in block.linears.values())


def test_inputs_of_a_block_entered_per_crop_come_from_the_pruned_block_before_it():
    model, blocks, batches = _toy("crops")
    for visit in walk(model, blocks, batches):
        if visit.block.name == "tower.1":
            found = gather(visit, InputNorm, [TokenWeights()] * 3)["tower.1.0"]
            break
        _halve(visit.block)
    with torch.no_grad():
        inputs = torch.cat([model.tower[0](batch["pixels"]).reshape(-1, 8) for batch in batches])
    torch.testing.assert_close(found.norm_I, inputs.square().mean(0).sqrt())


def test_after_the_first_call_a_block_is_heard_no_further_than_to_its_last_linear():
    model, blocks, batches = _toy("crops")
    visit, ends = next(walk(model, blocks, batches)), []
    blocks[0].module[1].register_forward_hook(lambda *call: ends.append(call))
    heard = gather(visit, InputNorm, [TokenWeights()] * 3)
    assert (len(visit.calls), len(ends)) == (7, 1)
    assert heard["tower.0.0"].tokens == 7 * 2 * 3


def test_the_run_in_advance_multiplies_nothing(llava, monkeypatch):
    model, blocks, batches = llava
    linear, seen = nn.functional.linear, []
    monkeypatch.setattr(nn.functional, "linear", lambda *args: seen.append(args[1]) or linear(*args))
    for _ in walk(model, blocks[:1], batches):
        pass
    own = {id(linear.weight) for linear in blocks[0].linears.values()}
    assert own.isdisjoint(map(id, seen))  # batches stop in front of the only block


@pytest.mark.parametrize(("propagate", "runs"), [("sequential", 2), ("dense", 1)])
def test_what_a_dense_block_made_of_a_batch_is_not_computed_again(llava, propagate, runs):
    model, blocks, batches = llava
    plain, outputs, seen = _plain(model, batches), [], []
    for visit in walk(model, blocks, batches, propagate=propagate, outputs=outputs):
        next(iter(visit.block.linears.values())).register_forward_hook(lambda module, *_: seen.append(module))
        gather(visit, InputNorm, _tokens(model, batches))
        _halve(visit.block)
    assert len(seen) == runs * len(blocks) * len(batches)
    assert (propagate == "dense") == all(torch.equal(a.logits, b) for a, b in zip(outputs, plain, strict=True))


def test_a_block_that_is_pruned_before_every_batch_has_run_it_cannot_go_on_as_dense(llava):
    model, blocks, batches = llava
    visits = walk(model, blocks, batches, propagate="dense")
    _halve(next(visits).block)
    with pytest.raises(RessaError, match=f"{blocks[0].name} was changed before every batch had run it"):
        next(visits)


def test_a_linear_that_is_called_twice_is_heard_twice_in_every_call():
    model, blocks, batches = _toy("crops")
    twice = nn.Sequential(blocks[0].module[0], nn.Tanh(), blocks[0].module[0])
    model.tower[0], blocks[0] = twice, Block("tower.0", "vision", twice, {"tower.0.0": twice[0]})
    heard = gather(next(walk(model, blocks, batches)), InputNorm, [TokenWeights()] * 3)
    assert heard["tower.0.0"].tokens == 2 * 7 * 2 * 3


def test_a_forward_that_goes_another_way_than_its_likes_is_refused():
    model, blocks, batches = _toy("crops")
    plain = model.forward

    def moody(pixels, **kwargs):  # a way that depends on the values, not the shapes
        return plain(pixels if pixels.sum() < 0 else pixels.repeat(1, 2, 1, 1))

    model.forward = moody
    pixels = batches[0]["pixels"]
    alike = [{"pixels": -pixels.abs()}, {"pixels": pixels.abs()}]
    with pytest.raises(RessaError, match=r"tower\.0 was pruned before batch 1"):
        for _ in walk(model, blocks, alike):
            pass


def test_a_block_that_overwrites_its_own_input_is_refused():
    model, _, batches = _toy("crops")

    class Greedy(nn.Sequential):
        def forward(self, x):
            return super().forward(x.add_(1))

    model.tower[0] = Greedy(*model.tower[0])
    first = Block("tower.0", "vision", model.tower[0], {"tower.0.0": model.tower[0][0]})
    visit = next(walk(model, [first], batches))
    with pytest.raises(RessaError, match=r"tower\.0 changes its own arguments"):
        gather(visit, InputNorm, [TokenWeights()] * 3)


def _alive():
    gc.collect()
    return sum(issubclass(type(thing), greenlet) and bool(thing) for thing in gc.get_objects())
