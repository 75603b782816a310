"""Every image-text-to-text type of the installed transformers: inspected, pruned, repaired, saved and loaded again.

docs/models.md tells what came of it. `PYTHONPATH=tests python tests/model/test_families.py` writes its table anew.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from families import proof
from families.specials import CANNOT, NEEDS

TYPES = sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
COLUMNS = ("inspect", "prune vision", "prune language", "repair", "reload", "MoE")
# types without linears to prune in a vision tower, or without a tower
BLIND = {
    "chameleon": "a picture becomes words by a VQ-VAE of convolutions",
    "emu3": "a picture becomes words by a VQ-VAE of convolutions",
    "fuyu": "patches go straight into the decoder",
    "gemma4_unified": "patches go straight into the decoder",
    "mistral4": "text only, though transformers lists it",
    "udop": "one encoder reads text and patches together: it is language",
}


def examine(model_type: str, root: Path, data: Path) -> list[str]:
    """The cells of the type's row, each after its proof. Raises what was wrong."""
    case = proof.build(model_type, root / "dense", data)
    parts = proof.inspect(case)["parts"]
    proof.walk_changes_nothing(case)
    proof.answers(case)
    pruned = proof.prune(case, root / "2of4", "wanda", "2:4")
    proof.repair(case, root / "2of4", root / "repaired")
    touched = {entry["part"] for entry in pruned["matrices"].values()}
    sees = bool(parts.get("vision", {}).get("linears"))
    assert touched == ({"vision", "language"} if sees else {"language"})
    experts = any(".experts." in name and name.rpartition(".")[2].isdigit() for name in pruned["matrices"])
    return ["yes", "yes" if sees else "none", "yes", "yes", "yes", "yes" if experts else "none"]


def row(model_type: str, root: Path, data: Path) -> str:
    cells = refused(model_type) if model_type in CANNOT else examine(model_type, root, data)
    why = CANNOT[model_type][3] if model_type in CANNOT else BLIND.get(model_type, "")
    return f"| {' | '.join([f'`{model_type}`', *cells, why])} |"


def refused(model_type: str) -> list[str]:
    return ["yes" if CANNOT[model_type][0] == column else "no" for column in COLUMNS]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return _records(tmp_path_factory.mktemp("records"))


def _records(folder: Path) -> Path:
    """As many records as the inputs have; what they say is not looked at."""
    lines = [json.dumps({"question": "a?", "answer": "b"})] * 3
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def told() -> dict[str, str]:
    """The rows of the page, by type."""
    return {match[1]: match[0] for match in re.finditer(r"(?m)^\| `([\w.-]+)` \|.*$", PAGE.read_text(encoding="utf-8"))}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in CANNOT])
def test_a_type_is_inspected_pruned_repaired_and_loaded_again(model_type, tmp_path, data):
    assert row(model_type, tmp_path, data) == told().get(model_type), (
        "run: PYTHONPATH=tests python tests/model/test_families.py"
    )


@pytest.mark.slow  # the same walk once more, for Grams and weights that change; methods have tests of their own
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in CANNOT])
def test_a_type_is_pruned_by_a_method_that_changes_the_weights_it_keeps(model_type, tmp_path, data):
    case = proof.build(model_type, tmp_path / "dense", data)
    proof.prune(case, tmp_path / "half", "sparsegpt", "50%")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model_type", sorted(CANNOT))
def test_a_type_that_cannot_is_refused_for_the_reason_that_the_page_gives(model_type, tmp_path, data):
    if model_type in NEEDS and find_spec(NEEDS[model_type]):
        pytest.skip(f"{NEEDS[model_type]} is here")
    stage, error, words, _ = CANNOT[model_type]

    def all_the_way() -> None:
        case = proof.build(model_type, tmp_path / "dense", data)
        proof.inspect(case)
        assert stage == "inspect"
        proof.prune(case, tmp_path / "2of4", "wanda", "2:4")

    with pytest.raises(error, match=words):
        all_the_way()
    assert row(model_type, tmp_path, data) == told().get(model_type), (
        "run: PYTHONPATH=tests python tests/model/test_families.py"
    )


def test_the_page_tells_of_every_type_of_the_installed_transformers():
    text = PAGE.read_text(encoding="utf-8")
    version = re.search(r"transformers (\d+\.\d+)", text)
    assert version
    if not transformers.__version__.startswith(version[1]):
        pytest.skip(f"the page tells of transformers {version[1]}")
    assert sorted(told()) == TYPES
    assert summary(list(told().values())) in text


def summary(rows: list[str]) -> str:
    green = sum(" no " not in line for line in rows)
    blind = sum(f"`{name}`" in line for line in rows for name in BLIND)
    mixtures = sum(line.split("|")[7] == " yes " for line in rows)
    return (
        f"{green} of the {len(rows)} types pass everything; {mixtures} of these are mixtures of experts, "
        f"and {blind} have\nno linears in a vision tower to prune."
    )


def _renew() -> None:
    """Writes the lines of the page anew, of all types or of those named, from proofs run now, one after the other."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:] or TYPES
    with tempfile.TemporaryDirectory() as root:
        data = _records(Path(root))
        for model_type in wanted:
            try:
                line = row(model_type, Path(root, model_type), data)
            except Exception as error:
                print(f"{model_type}: {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
            else:
                _write({name: other for name, other in told().items() if name in TYPES} | {model_type: line})


def _write(rows: dict[str, str]) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- types -->\n")
    lines = [rows[name] for name in sorted(rows)]
    head = [f"| type | {' | '.join(COLUMNS)} | |", "|---" * (len(COLUMNS) + 2) + "|"]
    table = "\n".join([summary(lines), "", *head, *lines])
    after = rest.partition("<!-- end of types -->")[2]
    PAGE.write_text(f"{before}<!-- types -->\n{table}\n<!-- end of types -->{after}", encoding="utf-8")


if __name__ == "__main__":
    _renew()
