"""The model card says what the folder's JSON says, in the hub's own format; nothing is sent without a login."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from made_run import made_run, write

from ressa.cli import main
from ressa.errors import RessaError
from ressa.reporting.card import card, card_text, push


@pytest.fixture
def run(tmp_path) -> Path:
    return made_run(tmp_path / "run")


def text_of(folder: Path, **changed) -> str:
    return card_text(json.loads((folder / "ressa.json").read_text()) | changed, folder)


def test_the_card_is_read_by_the_hubs_own_reader_with_scores_and_licence(run):
    told = ModelCard(text_of(run / "repaired")).data
    scores = json.loads((run / "scores" / "repaired" / "scores.json").read_text())
    assert (told.library_name, told.license, "repaired" in told.tags) == ("transformers", "cc-by-sa-4.0", True)
    assert {one.metric_type: one.metric_value for one in told.eval_results} == {
        name: scores[name] for name in scores["metrics"]
    }
    assert told.base_model is None  # `demo` is no name on the hub


def test_the_card_says_recipe_zeros_of_each_part_and_how_to_load(run):
    text = text_of(run / "repaired")
    assert "`demo`, pruned to 50% by Wanda, then repaired at the same zeros" in text
    assert "| vision | 256 | 50.0% |" in text
    assert "AutoModelForImageTextToText.from_pretrained('repaired')" in text
    assert "  method: wanda" in text
    assert "  steps: 3" in text
    assert "damp" not in text  # was given no value


def test_a_base_model_of_the_hub_is_named_and_its_licence_read_from_the_cache_alone(run, tmp_path, monkeypatch):
    base = tmp_path / "README.md"
    base.write_text("---\nlicense: other\nlicense_name: odd\nlicense_link: LICENSE\n---\n")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(base))
    manifest = json.loads((run / "pruned" / "ressa.json").read_text())
    manifest["arguments"]["model"] = "some/model"
    told = ModelCard(card_text(manifest, run / "pruned")).data
    assert (told.base_model, told.license, told.license_name) == ("some/model", "other", "odd")


def test_a_folder_without_scores_has_a_card_without_them(run):
    (run / "scores").rename(run / "elsewhere")
    assert ModelCard(text_of(run / "pruned")).data.eval_results is None


def test_texts_of_a_manifest_cannot_end_their_block_or_reach_a_terminal(run):
    text = text_of(run / "pruned", arguments={"model": "demo", "data": "a```\n# b\x1b[31m", "sparsity": "2:4"})
    assert text.count("```") == 4
    assert "\x1b" not in text


def test_the_command_writes_the_card_once_more_and_never_over_one_that_is_not_its_own(run, capsys):
    for _ in range(2):
        card(run / "pruned")
    write(run / "repaired" / "README.md", "mine")
    with pytest.raises(RessaError, match="not by ressa"):
        card(run / "repaired")
    assert (run / "repaired" / "README.md").read_text() == "mine"
    with pytest.raises(RessaError, match=r"no ressa\.json in this folder"):
        card(run / "data")
    write(run / "pruned" / "ressa.json", {"command": "prune"})
    with pytest.raises(RessaError, match="not what ressa writes"):
        card(run / "pruned")


def test_pushing_is_refused_offline_without_a_login_and_by_the_hub_in_one_line(run, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    with pytest.raises(RessaError, match="hf auth login"):
        push(run / "pruned", "user/name")
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: True)
    with pytest.raises(RessaError, match="HF_HUB_OFFLINE"):
        push(run / "pruned", "user/name")

    def refuse(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(RessaError, match="user/name: not sent to the hub: no route to host"):
        push(run / "pruned", "user/name")


def test_both_commands_are_on_the_command_line(run, tmp_path, monkeypatch, capsys):
    for words in (["report", str(run), "-o", str(tmp_path / "r.html")], ["card", str(run / "pruned")]):
        monkeypatch.setattr("sys.argv", ["ressa", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "50% by Wanda costs" in told
    assert f"card: {run / 'pruned' / 'README.md'}" in told
