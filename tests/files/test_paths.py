"""Paths as users name them: ~, nothing at all, too long, links, folders that are read, full disks; and pickles."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pico
import ressa
from ressa.errors import RessaError
from ressa.evaluation.settings import Evaluate
from ressa.files.folders import check_output, writing
from ressa.files.paths import path_of
from ressa.model.pickles import command
from ressa.pipeline.recipe import Recipe
from ressa.pruning.settings import Prune

LONG = "o" * 300
QUICK = ["--method", "magnitude", "--sparsity", "50%"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home of one's own, with the working folder elsewhere."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def every_path(model: Path, data: Path) -> dict[str, list[object]]:
    """A command for each argument and option that is a path, with PATH where it stands."""
    prune = ["prune", model, "out", "--data", data]
    repair = ["repair", model, "out", "--teacher", model, "--data", data]
    evaluate = ["evaluate", model, "--data", data]
    prepare = ["data", "llava-mix", data / "train.jsonl", "out"]
    return {
        "inspect MODEL": ["inspect", "PATH"],
        "inspect --plan MODEL": ["inspect", "PATH", "--plan"],
        "prune MODEL": ["prune", "PATH", "out", *QUICK],
        "prune OUT": ["prune", model, "PATH", *QUICK],
        "prune --data": [*prune[:-1], "PATH"],
        "prune --allocation": [*prune, "--allocation", "PATH.json"],
        "repair PRUNED": ["repair", "PATH", *repair[2:]],
        "repair OUT": ["repair", model, "PATH", *repair[3:]],
        "repair --teacher": [*repair[:4], "PATH", *repair[5:]],
        "repair --data": [*repair[:-1], "PATH"],
        "repair --teacher-cache": [*repair, "--teacher-cache", "PATH"],
        "evaluate MODEL": ["evaluate", "PATH", *evaluate[2:]],
        "evaluate --data": ["evaluate", model, "--data", "PATH"],
        "evaluate --data of a task": ["evaluate", model, "--task", "vqav2", "--data", "PATH"],
        "evaluate --against": [*evaluate, "--against", "PATH"],
        "evaluate --versus": [*evaluate, "--versus", "PATH"],
        "evaluate --out": [*evaluate, "--out", "PATH"],
        "evaluate --images": [*evaluate, "--task", "vqav2", "--images", "PATH"],
        "compare MODEL": ["compare", "PATH", "--data", data, "--methods", "wanda", "--out", "out"],
        "compare --data": ["compare", model, "--data", "PATH", "--methods", "wanda", "--out", "out"],
        "compare --out": ["compare", model, "--data", data, "--methods", "wanda", "--out", "PATH"],
        "run RECIPE": ["run", "PATH"],
        "demo --out": ["demo", "--out", "PATH"],
        "data emoji OUT": ["data", "emoji", "PATH"],
        "data SOURCE": ["data", "llava-mix", "PATH", "out"],
        "data OUT": [*prepare[:3], "PATH"],
        "data dataset SOURCE": ["data", "dataset", "PATH", "out"],
        "data --images": [*prepare, "--images", "PATH"],
        "data check FOLDER": ["data", "check", "PATH"],
    }


NAMES = list(every_path(Path(), Path()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "is empty"),
        (LONG, "File name too long"),
        ("~nobody-here/x", "no home folder is known"),
        ("a\0b", "has a NUL"),
    ],
    ids=["empty", "long", "unknown home", "NUL"],
)
def test_no_path_of_any_command_may_be_one_that_cannot_be(refused, llava_folder, tiny_data, home, name, path, told):
    words = [str(word).replace("PATH", path) for word in every_path(llava_folder, tiny_data)[name]]
    if path == "" and name == "prune --allocation":
        words[-1] = ".json"  # a name like any other
        told = "No such file"
    assert told in refused(*words)


def test_the_home_folder_is_meant_by_a_tilde_that_no_shell_has_seen(ressa, llava_folder, tiny_data, home):
    shutil.copytree(llava_folder, home / "model")
    shutil.copytree(tiny_data, home / "data")
    common = ["--data", "~/data", "--samples", 2]
    assert ressa("inspect", "~/model")[0] == 0
    assert ressa("prune", "~/model", "~/pruned", "--method", "wanda", *common)[0] == 0
    assert ressa("prune", "~/model", "~/same", "--allocation", "~/pruned/ressa.json", *common)[0] == 2  # was uniform
    teacher = ["--teacher", "~/model", "--teacher-cache", "~/cache", "--steps", 1]
    assert ressa("repair", "~/pruned", "~/repaired", *teacher, *common)[0] == 0
    asked = ["evaluate", "~/repaired", "--data", "~/data", "--limit", 2, "--max-new-tokens", 1]
    assert ressa(*asked, "--out", "~/scores")[0] == 0
    code, out, _ = ressa(*asked, "--versus", "~/scores", "--against", "~/model")
    assert code == 0
    assert "beside ~/scores" in out
    recipe = "model: ~/model\ndata: ~/data\nout: ~/run\nprune: {method: magnitude}\nevaluate: {max_new_tokens: 1}\n"
    (home / "recipe.yaml").write_text(recipe)
    code, out, err = ressa("run", "~/recipe.yaml")
    assert code == 0, err
    assert (home / "run" / "answers.png").is_file()
    settings = ["--methods", "magnitude", "--sparsity", "50%", "--limit", 2]
    assert ressa("compare", "~/model", "--data", "~/data", *settings, "--out", "~/compared")[0] == 0
    assert (home / "compared" / "blocks.png").is_file()
    assert ressa("data", "emoji", "~/emoji", "--train", 1, "--validation", 1, "--test", 1)[0] == 0
    assert os.listdir() == [], "nothing is called ~ here"
    made = {"pruned", "cache", "repaired", "scores", "run", "compared", "emoji"}
    there = {
        path.name for path in home.iterdir() if not path.name.startswith(".")
    }  # libraries have caches of their own
    assert there == made | {"model", "data", "recipe.yaml"}


def test_the_home_folder_is_meant_in_python_too(llava_folder, tiny_data, home):
    ressa.prune(llava_folder, "~/a", method="magnitude")
    ressa.prune(Path(llava_folder), Path("~/b"), method="magnitude")
    ressa.evaluate("~/a", data=tiny_data, out="~/scores", limit=1, max_new_tokens=1)
    ressa.run(Recipe(str(llava_folder), str(tiny_data), "~/run", prune=Prune("magnitude"), evaluate=Evaluate(limit=1)))
    assert {path.name for path in home.iterdir()} == {"a", "b", "scores", "run"}
    assert os.listdir() == []


def test_a_folder_that_is_called_tilde_can_still_be_named(home):
    assert path_of("./~/x", "it") == Path("./~/x")
    assert path_of("~", "it") == home


VERBS = {
    "prune": ["prune", "MODEL", "OUT", "--data", "DATA"],
    "repair": ["repair", "MODEL", "OUT", "--teacher", "MODEL", "--data", "DATA"],
    "evaluate": ["evaluate", "MODEL", "--data", "DATA", "--out", "OUT"],
    "compare": ["compare", "MODEL", "--data", "DATA", "--methods", "magnitude", "--out", "OUT"],
    "export": ["export", "MODEL", "OUT"],
    "data emoji": ["data", "emoji", "OUT"],
    "data check": ["data", "llava-mix", "DATA/train.jsonl", "OUT"],
}


def words(verb: str, model: object, data: object, out: object) -> list[str]:
    told = {"MODEL": str(model), "OUT": str(out)}
    return [told.get(word, word.replace("DATA", str(data))) for word in VERBS[verb]]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("length", [245, 300], ids=["its hidden neighbour", "itself"])
def test_a_name_too_long_is_refused_before_any_work(refused, llava_folder, tiny_data, tmp_path, verb, length):
    for out in (tmp_path / ("o" * length), tmp_path / "new" / ("o" * length), tmp_path / "/".join(["p" * 200] * 25)):
        if length == 245 and verb in ("evaluate", "compare") and out.name.startswith("o"):
            continue  # they write into the folder, and nothing beside it
        assert "File name too long" in refused(*words(verb, llava_folder, tiny_data, out))


@pytest.mark.parametrize("verb", ["prune", "repair", "data emoji", "data check"])
def test_a_link_to_a_folder_is_no_output_that_could_appear_whole(refused, llava_folder, tiny_data, tmp_path, verb):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    told = f"is a link; name the folder it leads to, {tmp_path / 'real'}"
    assert told in refused(*words(verb, llava_folder, tiny_data, tmp_path / "link"))
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "is a link" in refused(*words(verb, llava_folder, tiny_data, tmp_path / "dangling"))


def test_scores_may_go_through_a_link_to_a_folder_but_not_to_nothing(ressa, refused, llava_folder, tiny_data, tmp_path):
    (tmp_path / "dangling").symlink_to("nowhere")
    line = refused(*words("evaluate", llava_folder, tiny_data, tmp_path / "dangling"))
    assert "is a link to nothing" in line
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    few = ["--limit", 1, "--max-new-tokens", 1]
    assert ressa(*words("evaluate", llava_folder, tiny_data, tmp_path / "link"), *few)[0] == 0
    assert (tmp_path / "real" / "scores.json").is_file()


@pytest.mark.parametrize("verb", ["prune", "repair", "evaluate", "compare"])
def test_the_folder_of_a_model_is_no_place_for_outputs(refused, llava_folder, tiny_data, tmp_path, verb):
    model = Path(shutil.copytree(llava_folder, tmp_path / "model"))
    (tmp_path / "link").symlink_to("model")
    for out in (model / "out", tmp_path / "link" / "out", model / "new" / "out", f"{tmp_path}/x/../model/out"):
        line = refused(*words(verb, model, tiny_data, out))
        assert "which is read and stays as it is; name a folder outside of it" in line
    assert refused(*words(verb, model, tiny_data, model))


def test_a_recipe_and_the_demo_may_not_write_into_a_model_either(refused, llava_folder, tiny_data, tmp_path):
    model = Path(shutil.copytree(llava_folder, tmp_path / "model"))
    (tmp_path / "r.yaml").write_text(f"model: {model}\ndata: {tiny_data}\nout: {model}/run\nevaluate: {{}}\n")
    assert "which is read and stays as it is" in refused("run", tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(f'model: {model}\ndata: {tiny_data}\nout: ""\nevaluate: {{}}\n')
    assert "out is empty" in refused("run", tmp_path / "r.yaml")


def test_answers_may_not_go_into_the_data_where_they_would_look_like_a_split(refused, llava_folder, data, tmp_path):
    assert "is the folder of the data" in refused(*words("evaluate", llava_folder, data, data))


@pytest.mark.parametrize("out", ["new/..", ".."])
def test_an_output_has_a_name_of_its_own(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RessaError, match=r"ends in \.\.; name the folder itself"):
        check_output(out)


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """No file may grow beyond 4,000 bytes, which fails as a quota or a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def pruned(llava_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("paths") / "pruned"
    ressa.prune(llava_folder, out, method="magnitude")
    return out


@pytest.mark.parametrize(
    "more", [["--steps", 1], ["--steps", 0, "--reconstruct", 1], ["--steps", 1, "--teacher-cache", "CACHE"], None]
)
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(
    refused, llava_folder, pruned, tiny_data, tmp_path, full_disk, more
):
    if more is None:
        line = refused("prune", llava_folder, tmp_path / "out", *QUICK)
    else:
        more = [tmp_path / "cache" if word == "CACHE" else word for word in more]
        teacher = ["--teacher", llava_folder, "--data", tiny_data, "--samples", 2]
        line = refused("repair", pruned, tmp_path / "out", *teacher, *more)
    assert "cannot be written" in line
    assert "File too large" in line


def test_what_any_library_says_of_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(RessaError, match=r"/x: cannot be written \(No space left on device\)"), writing(Path("/x")):
        raise OSError(28, os.strerror(28))
    with pytest.raises(RessaError, match="/x: cannot be written"), writing(Path("/x")):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 70336 vs 70228")
    with pytest.raises(RuntimeError, match="another"), writing(Path("/x")):
        raise RuntimeError("another")


# ---- pickles ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tmp_path) -> Path:
    """A model as it was saved before safetensors."""
    model = pico.llava(tmp_path / "pickled")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return model


def test_a_pickle_is_named_with_a_command_that_converts_it(refused, ressa, pickled, llava_folder, tiny_data, tmp_path):
    out, common = tmp_path / "out", ["--data", tiny_data]
    for told in (
        ["inspect", pickled],
        ["prune", pickled, out, *QUICK],
        ["repair", pickled, out, "--teacher", llava_folder, *common],
        ["repair", llava_folder, out, "--teacher", pickled, *common],
        ["evaluate", pickled, *common],
        ["evaluate", llava_folder, *common, "--against", pickled, "--max-new-tokens", 1],
        ["compare", pickled, *common, "--methods", "magnitude", "--out", out],
    ):
        line = refused(*told)
        assert "its weights are a pickle (pytorch_model.bin)" in line
        assert command(pickled) in line
    before = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    subprocess.run(command(pickled).replace("python", sys.executable, 1), shell=True, check=True, capture_output=True)
    after = load_file(pickled / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ressa("inspect", pickled)[0] == 0


def test_a_recipe_with_a_pickle_is_refused_before_its_data_are_drawn(refused, pickled, tmp_path):
    (tmp_path / "r.yaml").write_text(f"model: {pickled}\nout: {tmp_path}/run\nprune: {{}}\n")
    assert "its weights are a pickle" in refused("run", tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pytorch_model.bin.index.json", "convert it once"),
        ("consolidated.00.pth", "write it again with save_pretrained"),
        ("model.pt", "write it again with save_pretrained"),
        ("epoch=3.ckpt", "write it again with save_pretrained"),
        ("weights.pkl", "write it again with save_pretrained"),
    ],
)
def test_every_kind_of_pickle_is_known(refused, pickled, name, told):
    (pickled / "pytorch_model.bin").rename(pickled / name)
    line = refused("inspect", pickled)
    assert f"its weights are a pickle ({name})" in line
    assert told in line


def test_what_trainer_leaves_beside_safetensors_is_no_pickled_model(ressa, llava_folder, tmp_path):
    model = Path(shutil.copytree(llava_folder, tmp_path / "model"))
    torch.save({}, model / "training_args.bin")
    torch.save({}, model / "pytorch_model.bin")
    assert ressa("inspect", model)[0] == 0


def test_a_plan_needs_no_weights_and_takes_a_pickled_model(ressa, pickled):
    assert json.loads(ressa("inspect", pickled, "--plan", "--json")[1])["parameters"] > 0
