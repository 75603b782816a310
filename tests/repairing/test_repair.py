"""The repair verb on pico models: what it must never lose, what it may change, and how it goes on after a stop."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from ressa import machine, repair
from ressa.calibration.logits import logits_at, targets
from ressa.data.prompts import IGNORED, encode
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.model import structure as structures
from ressa.model.folder import write_folder
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.patterns import NofM, Unstructured, parse
from ressa.repairing.distill import answer_kl
from ressa.repairing.settings import Repair
from ressa.repairing.trainer import last_checkpoint

pytestmark = pytest.mark.formats

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama", "causal_lm"]
LINEARS_ONLY = {"train_norms": False, "train_biases": False, "train_connector": False}


def prune_by_magnitude(
    dense: Path, out: Path, pattern: str = "2:4", *, manifest: bool = True, connector: bool = False, dtype=None
) -> Path:
    """A pruned folder as the prune verb leaves it: vision and language, and ressa.json unless told otherwise."""
    model, processor = load(dense, dtype=dtype)
    matrices = {}
    wanted = parse(pattern)
    for block in structure(model).blocks():
        if block.part == "connector" and not connector:
            continue
        for name, linear in block.linears.items():
            linear.weight.data *= wanted.keep(linear.weight.abs())
            zeros, weights = int((linear.weight == 0).sum()), linear.weight.numel()
            matrices[name] = {"part": block.part, "pattern": pattern, "weights": weights, "zeros": zeros}
    write_folder(out, model, processor, {"command": "prune", "matrices": matrices} if manifest else {})
    return out


@pytest.fixture(scope="module")
def pruned(llava_folder, tmp_path_factory) -> Path:
    return prune_by_magnitude(llava_folder, tmp_path_factory.mktemp("pruned") / "llava")


@pytest.fixture
def run(pruned, llava_folder, tiny_data, tmp_path):
    """repair() with pico settings; keyword arguments override them."""

    def run(name: str = "out", **changes):
        settings = {"teacher": llava_folder, "data": tiny_data, "steps": 3, "batch_size": 4, "rank": 4} | changes
        return repair(settings.pop("pruned", pruned), tmp_path / name, **settings)

    return run


def settings_of(**changes) -> Repair:
    """Complete settings, all defaults but the changes."""
    return Repair(**changes).complete


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every parameter of the loaded model by its name in memory."""
    return dict(load(folder)[0].named_parameters())


def changed(before: Path, after: Path) -> set[str]:
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def assert_same_zeros(before: Path, after: Path) -> None:
    old, new = weights(before), weights(after)
    for name in old:
        assert torch.equal(old[name] == 0, new[name] == 0), name


def kl_to_dense(folder: Path, dense: Path, data: Path) -> float:
    (model, processor), teacher = load(folder), load(dense)[0]
    batch = encode(processor, read_records(data), model.config, answers=True)
    positions = targets(batch.pop("labels"), encoder_decoder=False) != IGNORED
    with torch.no_grad():
        return float(answer_kl(logits_at(model, batch, positions), logits_at(teacher, batch, positions)))


def test_a_repaired_model_answers_more_like_the_dense_one_with_every_zero_in_place(
    run, pruned, llava_folder, tiny_data, tmp_path
):
    manifest = run(steps=30, lr=3e-3, kl_weight=1.0)  # the answers of a random model have nothing to do with the data's
    before, after = (kl_to_dense(f, llava_folder, tiny_data) for f in (pruned, tmp_path / "out"))
    assert after < 0.3 * before, f"KL to the dense model went from {before:.3f} to {after:.3f} only"
    assert_same_zeros(pruned, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for name in manifest["matrices"]:
        assert NofM(2, 4).holds(model.get_submodule(name).weight), name


def test_the_answers_themselves_are_learned(run):
    history = run(steps=20, lr=3e-3, kl_weight=0.0, hidden_weight=0.0)["history"]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


@pytest.mark.parametrize(("family", "pattern"), [*((family, "2:4") for family in FAMILIES), ("llava", "70%")])
def test_every_family_keeps_its_zeros_and_trains_every_pruned_matrix(family, pattern, request, tiny_data, tmp_path):
    dense = request.getfixturevalue(f"{family}_folder")
    pruned = prune_by_magnitude(dense, tmp_path / "pruned", pattern)
    manifest = repair(pruned, tmp_path / "out", teacher=dense, data=tiny_data, steps=2, batch_size=4, rank=2)
    assert_same_zeros(pruned, tmp_path / "out")
    new = changed(pruned, tmp_path / "out")
    still = {name for name in manifest["matrices"] if f"{name}.weight" not in new}
    assert not still, f"these were never trained: {still}"


def test_the_output_is_an_ordinary_folder_that_differs_in_its_weights_only(run, pruned, tmp_path):
    run()
    ours = {"model.safetensors", "ressa.json"}
    for folder in (pruned, tmp_path / "out"):
        assert ours < {file.name for file in folder.iterdir()}
    for file in pruned.iterdir():
        if file.name not in ours:
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    old, new = (load_file(folder / "model.safetensors") for folder in (pruned, tmp_path / "out"))
    assert {k: (t.shape, t.dtype) for k, t in old.items()} == {k: (t.shape, t.dtype) for k, t in new.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the folder of checkpoints is gone"


def test_a_bfloat16_model_stays_bfloat16_and_keeps_its_zeros(run, llava_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "slower", lambda dtype: 1.0)  # no warning where it is slow
    pruned = prune_by_magnitude(llava_folder, tmp_path / "pruned", dtype="bfloat16")
    run(pruned=pruned, bf16=True)
    assert {p.dtype for p in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert_same_zeros(pruned, tmp_path / "out")
    assert any("norm" in name for name in changed(pruned, tmp_path / "out"))


def test_only_the_pruned_linears_change_unless_more_is_asked_for(run, pruned, tmp_path):
    matrices = {f"{name}.weight" for name in run("linears", **LINEARS_ONLY)["matrices"]}
    assert changed(pruned, tmp_path / "linears") == matrices
    biases = {name.removesuffix("weight") + "bias" for name in matrices} & weights(pruned).keys()
    expected = {
        "train_norms": lambda name: "norm" in name,
        "train_biases": biases.__contains__,
        "train_connector": lambda name: "multi_modal_projector" in name,
    }
    for switch, belongs in expected.items():
        run(switch, **(LINEARS_ONLY | {switch: True}))
        more = changed(pruned, tmp_path / switch) - matrices
        assert more, switch
        assert all(belongs(name) for name in more), (switch, more)


def test_a_connector_that_was_pruned_is_trained_without_losing_its_zeros(run, llava_folder, tmp_path):
    pruned = prune_by_magnitude(llava_folder, tmp_path / "pruned", connector=True)
    run(pruned=pruned, train_connector=True)
    assert "model.multi_modal_projector.linear_1.weight" in changed(pruned, tmp_path / "out")
    assert_same_zeros(pruned, tmp_path / "out")


def test_a_model_repaired_against_itself_has_nothing_to_learn(run, pruned):
    history = run(teacher=pruned, kl_weight=1.0)["history"]
    assert history[0]["loss"] == pytest.approx(0, abs=1e-6), "student and teacher are compared at the same positions"


def test_without_distillation_the_teacher_is_not_loaded(run, tmp_path, llava_folder):
    shell = tmp_path / "shell"
    shell.mkdir()
    (shell / "config.json").write_bytes((llava_folder / "config.json").read_bytes())
    run(teacher=shell, kl_weight=0.0, hidden_weight=0.0)
    with pytest.raises(RessaError, match="shell"):
        run("other", teacher=shell)


def test_the_paper_switch_weighs_the_kl_of_all_positions(run):
    alike = {"kl_weight": 1.0, "temperature": 1.0, "hidden_weight": 0.0}
    ours, paper = (run(name, **alike, objective=name) for name in ("ressa", "paper"))
    # a sum over some thirty positions against a mean over the three or four of the answer
    assert paper["history"][0]["loss"] > 5 * ours["history"][0]["loss"]


def test_the_learning_rate_rises_and_then_falls_with_every_step(run):
    rates = [entry["lr"] for entry in run(steps=10, warmup=0.3, lr=1e-3)["history"]]
    assert rates[:4] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert len(set(rates)) == 10


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(run, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run(name, seed=seed, samples=7)
    one, two, three = (bytes_of(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_bytes(run, tmp_path):
    run("whole", steps=8)
    seen: list[int] = []

    def stop_at_6(done: int, total: int, what: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("out", steps=8, checkpoint_every=2, progress=stop_at_6)
    assert not (tmp_path / "out").exists()
    run("out", steps=8, checkpoint_every=2, progress=lambda done, total, what: seen.append(done))
    assert seen == [4, 5, 6, 7, 8], "it was at step 6, and its last checkpoint at step 4"
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))


def test_a_run_with_other_arguments_begins_anew(run):
    def stop_at_3(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(steps=8, checkpoint_every=2, progress=stop_at_3)
    seen: list[int] = []
    run(steps=8, lr=2e-3, progress=lambda done, total, what: seen.append(done))
    assert seen[0] == 0


def test_a_checkpoint_that_was_being_written_when_the_run_died_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((2, '{"global_step": 2}'), (10, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state:
            (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    assert last_checkpoint(tmp_path).name == "checkpoint-2"


def test_without_a_manifest_the_zeros_tell_what_was_pruned(run, llava_folder, tmp_path):
    for pattern in ("2:4", "40%"):
        folder = prune_by_magnitude(llava_folder, tmp_path / pattern, pattern, manifest=False)
        matrices = run(f"out {pattern}", pruned=folder)["matrices"]
        assert len(matrices) == 26
        if pattern == "2:4":
            assert {entry["pattern"] for entry in matrices.values()} == {"2:4"}
        else:
            assert {entry["group"] for entry in matrices.values()} == {"matrix"}
            assert all(isinstance(parse(entry["pattern"]), Unstructured) for entry in matrices.values())
        assert_same_zeros(folder, tmp_path / f"out {pattern}")


def test_the_manifest_tells_what_was_done_and_to_what(run, pruned, tmp_path):
    told: list[tuple[int, int, str]] = []
    manifest = run(progress=lambda *step: told.append(step))
    assert json.loads((tmp_path / "out" / "ressa.json").read_text(encoding="utf-8")) == manifest
    assert manifest["command"] == "repair"
    assert manifest["before"] == {"command": "prune"}
    assert manifest["parts"]["vision"]["sparsity"] == 0.5
    assert manifest["arguments"]["pruned"] == str(pruned)
    assert [(done, total) for done, total, _ in told] == [(done, 3) for done in range(4)]
    assert told[0][2] == "repair"
    assert all(re.fullmatch(r"repair, loss [\d.e-]+", what) for _, _, what in told[2:])


def test_nothing_is_printed_by_the_trainer(run, capsys):
    run()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "loss" not in printed.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "repair: steps: -1 must"),
        ({"samples": 0}, "repair: samples: 0 must"),
        ({"batch_size": 0}, "repair: batch_size: 0 must"),
        ({"rank": 0}, "repair: rank: 0 must"),
        ({"lr": 0.0}, "repair: lr: 0.0 must be above 0"),
        ({"lr": float("nan")}, "repair: lr: nan is no number"),
        ({"temperature": -1.0}, "repair: temperature: -1.0 must"),
        ({"kl_weight": 1.5}, "repair: kl_weight: 1.5 must be at most 1"),
        ({"warmup": -0.1}, "repair: warmup: -0.1 must"),
        ({"batch_size": "4"}, "repair: batch_size: '4' is not a whole number"),
        ({"bf16": 1}, "repair: bf16: 1 is not true or false"),
        ({"parts": None}, "repair: parts: has no value"),
        ({"seed": -1}, "repair: seed: -1 must be at least 0"),
        ({"top_k": 0}, "repair: top_k: 0 must"),
        ({"checkpoint_every": 0}, "repair: checkpoint_every: 0 must"),
        ({"split": "none"}, "no none.jsonl"),
    ],
)
def test_a_wrong_value_is_refused_and_nothing_written(run, changes, message, tmp_path):
    with pytest.raises(RessaError, match=message):
        run(**changes)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_not_empty_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(RessaError, match="not empty"):
        run()


def test_a_teacher_of_another_kind_is_refused(run, blip2_opt_folder):
    with pytest.raises(RessaError, match=r"blip-2 model.*dense original"):
        run(teacher=blip2_opt_folder)


def test_a_dense_model_is_refused(run, llava_folder, tmp_path):
    with pytest.raises(RessaError, match="nothing to repair"):
        run(pruned=llava_folder)
    assert not list(tmp_path.iterdir())


def test_a_manifest_that_the_weights_contradict_is_refused(run, llava_folder, tmp_path):
    folder = prune_by_magnitude(llava_folder, tmp_path / "pruned", "50%")
    manifest = json.loads((folder / "ressa.json").read_text(encoding="utf-8"))
    name = next(iter(manifest["matrices"]))
    manifest["matrices"][name]["pattern"] = "60%"
    (folder / "ressa.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RessaError, match=f"{name} is pruned to 60%, but it is not"):
        run(pruned=folder)


# ---- the structure of a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "models"),
    [
        ({"reconstruct": 1, "reconstruct_lr": 1e-4, "connector_weight": 1.0}, 1),
        ({"adapter": "masked-ft", "rank": None}, 1),
        ({"objective": "paper", "connector_rank": 2}, 1),
        ({"teacher_cache": "cache"}, 2),  # the dense model, while nothing of the pruned one is in memory
    ],
)
def test_the_structure_of_a_model_is_told_once(run, tmp_path, monkeypatch, more, models):
    calls, real = [], structures.find_roots
    monkeypatch.setattr(structures, "find_roots", lambda model: (calls.append(model), real(model))[1])
    monkeypatch.chdir(tmp_path)
    run(steps=1, **more)
    assert len(calls) == models


def test_a_teacher_without_one_of_the_blocks_is_refused(llava_folder, pruned, tmp_path, run):
    dense, processor = load(llava_folder)
    dense.model.language_model.layers = dense.model.language_model.layers[:1]
    dense.config.text_config.num_hidden_layers = 1
    dense.save_pretrained(tmp_path / "short")
    processor.save_pretrained(tmp_path / "short")
    with pytest.raises(RessaError, match=r"the dense model has no model.language_model.layers.1"):
        run(teacher=tmp_path / "short")
