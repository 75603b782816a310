"""ressa bench: what is measured, in which turns, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import warnings
from types import SimpleNamespace

import pytest
import torch

import ressa
from ressa.benching import measure, verb
from ressa.benching.prompt import prompt
from ressa.benching.settings import Bench
from ressa.data.prompts import encode
from ressa.errors import RessaError, RessaWarning
from ressa.model.load import load
from ressa.packed.linear import PackedLinear

QUICK = {"tokens": 3, "batch_size": 2, "repetitions": 1, "threads": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def measured(packed, pruned, tmp_path_factory):
    """Both pico models, each in a process of its own; and the folder of bench.json."""
    out = tmp_path_factory.mktemp("bench")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RessaWarning)  # where no compiler was
        return ressa.bench(packed, against=pruned, out=out, **QUICK), out


def test_every_number_is_there_and_bench_json_holds_the_same(measured):
    told, out = measured
    assert json.loads((out / "bench.json").read_text()) == told
    assert list(told["models"]) == ["pruned", "packed"]
    assert told["against"] == "pruned"
    assert told["machine"]["compute"] == "float32"
    for model in told["models"].values():
        assert model["prompt_tokens"] > 4
        assert list(model["tokens_per_second"]) == ["1", "2"]
        for found in (model["load_seconds"], model["prefill_seconds"], *model["tokens_per_second"].values()):
            assert 0 < found["min"] <= found["median"] <= found["max"]
        assert model["peak_bytes"]["median"] > 100 * 2**20  # a whole process with torch in it


def test_bytes_in_memory_are_those_of_the_tensors_and_the_bound_is_that_of_a_decoded_token(measured, pruned, packed):
    dense, small = measured[0]["models"].values()
    net, _ = load(pruned)
    tower = sum(p.nbytes for name, p in net.named_parameters() if "vision" in name or "projector" in name)
    words = net.get_input_embeddings().weight.nbytes
    whole = sum(p.nbytes for p in net.parameters())
    buffers = sum(b.nbytes for b in net.buffers())
    assert dense["parameter_bytes"] == whole + buffers
    assert 0 <= dense["read_bytes"] - (whole - tower - words) <= buffers
    assert dense["bound"] == 1
    assert small["dense_bytes"] == pytest.approx(dense["read_bytes"], rel=0.01)
    layers = [m for m in load(packed)[0].model.language_model.modules() if isinstance(m, PackedLinear)]
    saved = sum(4 * m.out_features * m.in_features - m.packed.bytes for m in layers)
    assert small["bound"] == pytest.approx(dense["read_bytes"] / (dense["read_bytes"] - saved), rel=0.1)


def test_the_clock_parts_the_prompt_from_the_tokens_after_it(monkeypatch):
    now = iter([10.0, 13.0, 13.5, 14.5])  # the call, and the logits of three tokens
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))

    def generate(logits_processor, max_new_tokens, **_):
        for _ in range(max_new_tokens):
            logits_processor(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 4))

    assert measure.timed(SimpleNamespace(generate=generate), {}, 3, 0) == (3.0, 0.75)


def test_a_generation_that_ends_early_is_refused_and_no_rate_is_made_of_it():
    with pytest.raises(RessaError, match="ended after 0 of 3 tokens"):
        measure.timed(SimpleNamespace(generate=lambda **_: None), {}, 3, 0)


def test_a_decoded_token_goes_through_the_language_model_alone(llava_folder):
    net, processor = load(llava_folder)
    batch = encode(processor, [prompt(None, "test")], net.config, answers=False)
    called = measure._decoding(net, batch, 0)
    assert net.lm_head in called
    assert not called & set(net.model.vision_tower.modules())


def test_generation_goes_on_behind_the_end_token(llava_folder):
    net, processor = load(llava_folder)
    batch = encode(processor, [prompt(None, "test")], net.config, answers=False)
    first = int(net.generate(**batch, max_new_tokens=1, do_sample=False)[0, -1])
    net.generation_config.eos_token_id = first
    clock = measure.Clock()
    measure.timed(net, batch, 4, 0, clock)
    assert len(clock.times) == 4


def told(seconds):
    return {
        "load_seconds": seconds,
        "prefill_seconds": seconds,
        "tokens_per_second": {"1": 1 / seconds},
        "prompt_tokens": 5,
        "parameter_bytes": 8,
        "read_bytes": 4,
        "dense_bytes": 6,
        "peak_bytes": 9,
        "machine": {},
        "warnings": ["slow here"],
    }


def test_models_take_turns_and_medians_stand_between_the_least_and_the_most(monkeypatch, pruned, packed):
    turns, seconds = [], iter([1.0, 10.0, 4.0, 40.0, 2.0, 20.0])

    def process(name, _):
        turns.append(name)
        return told(next(seconds))

    monkeypatch.setattr(verb, "_process", process)
    with pytest.warns(RessaWarning) as said:
        found = ressa.bench([packed], against=pruned)
    assert turns == ["pruned", "packed"] * 3
    assert found["models"]["pruned"]["load_seconds"] == {"median": 2, "min": 1, "max": 4}
    assert found["models"]["packed"]["tokens_per_second"]["1"]["median"] == 1 / 20
    assert found["models"]["packed"]["bound"] == 1.5
    assert [str(w.message) for w in said] == ["packed: slow here", "pruned: slow here"]  # each once


@pytest.mark.parametrize(
    ("code", "stderr", "line"),
    [(-9, "", "is there memory enough"), (1, "Traceback\nOSError: gone", "OSError: gone")],
)
def test_a_process_that_dies_is_one_line(monkeypatch, pruned, code, stderr, line):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code, stdout="", stderr=stderr))
    with pytest.raises(RessaError, match=f"^pruned: .* code {code}: .*{line}"):
        ressa.bench(pruned)


def test_what_fails_while_a_model_is_measured_is_one_line_too(pruned, tmp_path, capsys):
    job = {"model": str(tmp_path / "none"), "data": None, "settings": {}, "runtime": {"device": "cpu"}}
    assert measure.main(json.dumps(job)) == 0
    assert "no such model folder" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["some-org/some-model"], "some-org/some-model: is no folder on this machine; download it first"),
        (["{text}"], "reads text only; bench asks about a picture"),
        (["{model}", "--tokens", "0"], "bench: tokens: 0 must be at least 2"),
        (["{model}", "--repetitions", "0"], "bench: repetitions: 0 must be at least 1"),
        (["{model}", "--against", "{model}"], "a model is named twice"),
        (["{model}", "--data", "{data}", "--split", "none"], "none"),
        (["{model}", "--data", "{blind}"], "has a picture; name other data"),
        (["{model}", "--device", "cuda:77"], "device: 'cuda:77' is not on this machine"),
        (["{model}", "--out", "{model}/inside"], "which is read and stays as it is"),
    ],
)
def test_wrong_uses_are_one_line_before_any_model_is_loaded(
    words, line, refused, monkeypatch, llava_folder, causal_lm_folder, tiny_data, tmp_path
):
    monkeypatch.setattr(verb, "_process", lambda *_: pytest.fail("work began"))
    (tmp_path / "test.jsonl").write_text('{"question": "Why?", "answer": "so"}\n')
    places = {"model": llava_folder, "text": causal_lm_folder, "data": tiny_data, "blind": tmp_path}
    assert line in refused("bench", *(word.format(**places) for word in words))


def test_the_prompt_is_the_first_record_with_a_picture(tiny_data):
    assert prompt(str(tiny_data), "test").open_image().size == (48, 40)
    assert prompt(None, "test").open_image().size == (384, 384)


def test_two_folders_that_end_alike_keep_their_whole_names():
    assert list(verb.names(["a/packed", "b/packed", "c"])) == ["a/packed", "b/packed", "c"]


def test_settings_of_bench_are_at_the_door():
    assert ressa.Bench is Bench
