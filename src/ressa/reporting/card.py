"""A model card in the hub's format, from what lies in and beside a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ressa.errors import RessaError, one_line, printable
from ressa.files.paths import path_of
from ressa.files.text import write_atomic
from ressa.reporting.page.made import Scores, read_scores
from ressa.reporting.page.numbers import METHODS, metric_name
from ressa.reporting.stored import folder_of, manifest_of, read_object

MARK = "<!-- written by ressa card -->"
AUTO = {"ForConditionalGeneration": "AutoModelForImageTextToText", "ForCausalLM": "AutoModelForCausalLM"}

DENSE = "The zeros are stored as zeros: the folder is as large as the dense one and loads without ressa."
PACKED = "Packed: of the pruned linears only the kept weights are stored, with a bitmask; loading needs ressa."
COMPRESSED = "The zeros are stored as zeros, in the format of compressed-tensors: loading needs that library, or vLLM."
ROUNDED = " The kept weights of {} linears were converted to {}."


def card(folder: str | Path, repo: str | None = None) -> dict[str, Any]:
    """Writes README.md into a model folder, and sends the folder to `repo` on the hub if one is named.

    Returns:
        {"card": path, "address": of the model on the hub, or None}

    Raises:
        RessaError: no ressa.json there, a README.md that ressa did not write, and as `push`.
    """
    path = path_of(folder, "the folder")
    manifest = manifest_of(path)
    if not manifest:
        raise RessaError(f"{path}: no ressa.json in this folder; name one that prune or repair wrote")
    out = path / "README.md"
    if out.is_file() and MARK not in out.read_text(encoding="utf-8", errors="replace"):
        raise RessaError(f"{out}: is there already and not by ressa; rename it first")
    text = card_text(manifest, path)
    write_atomic(out, text)
    return {"card": str(out), "address": push(path, repo) if repo else None}


def card_text(manifest: Mapping[str, Any], folder: str | Path, name: str | None = None) -> str:
    """The card of the model in `folder`, whose ressa.json says `manifest`. Reads JSON and cards, and no weights.

    `name`: of the folder, where it is still to be renamed. What other programs pruned has no recipe in it.

    The licence is the base model's, as its own card says; scores are those of `ressa run` beside the folder.

    Raises:
        RessaError: a manifest that ressa did not write.
    """
    folder = Path(folder)
    name, scores = printable(name or folder.absolute().name), _scores(folder)
    try:
        pruning = dict(manifest.get("before", manifest).get("arguments", {}))
        base = str(pruning.get("model") or manifest["arguments"]["teacher"])
        body = _body(manifest, pruning, base, folder, scores, name)
        return f"---\n{_metadata(manifest, base, name, scores)}\n---\n\n{MARK}\n\n{body}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RessaError(f"{folder}: ressa.json is not what ressa writes ({one_line(error)})") from None


def _metadata(manifest: Mapping[str, Any], base: str, name: str, scores: Scores | None) -> Any:
    """The card's head, which the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    head |= {"tags": ["ressa", "pruned", "sparse", *(["repaired"] if manifest.get("command") == "repair" else [])]}
    head |= {name: value for name, value in _licence(base).items() if value}
    if "/" in base and not Path(base).exists():
        head |= {"base_model": base, "base_model_relation": "finetune"}
    if scores:
        values = scores.values
        measured: dict[str, Any] = {"dataset_type": scores.task, "dataset_name": _asked(scores)}
        measured["task_type"] = "image-text-to-text"
        head["eval_results"] = [EvalResult(metric_type=n, metric_value=v, **measured) for n, v in values.items()]
        head |= {"model_name": name, "metrics": list(values)}
    return ModelCardData(**head)


def push(folder: str | Path, repo: str) -> str:
    """Uploads a model folder to `repo` (user/name), which is made if it is not there; returns its address.

    Raises:
        RessaError: offline, not logged in, or what the hub refuses.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise RessaError(f"{repo}: HF_HUB_OFFLINE is set, so nothing can be sent to the hub; unset it")
    if get_token() is None:
        raise RessaError(f"{repo}: not logged in to the hub; run `hf auth login` first")
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Pruned with ressa").repo_url)
    except Exception as error:  # of whatever carries HTTP below it
        raise RessaError(f"{repo}: not sent to the hub: {one_line(error)}") from None


def _licence(base: str) -> dict[str, Any]:
    """license, license_name and license_link of the base model's own card, where that is on this machine."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    file: Any = folder_of(base) / "README.md"
    if not file.is_file() and "/" in base and not Path(base).exists():
        try:
            file = try_to_load_from_cache(base, "README.md")
        except ValueError:  # no name that the hub could have
            return {}
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    try:
        data = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError, yaml.YAMLError):
        return {}
    return {name: data.get(name) for name in ("license", "license_name", "license_link")}


def _scores(folder: Path) -> Scores | None:
    """Those of `evaluate --out` into the folder, or of the run that it is part of."""
    return read_scores(folder) or read_scores(folder.absolute().parent / "scores" / folder.absolute().name)


def _asked(scores: Scores) -> str:
    what = "own records" if scores.task == "folder" else scores.task
    return f"{what}{f', {scores.split}' if scores.split else ''} ({scores.n:,} questions)"


def _body(
    manifest: Mapping[str, Any], pruning: dict[str, Any], base: str, folder: Path, scores: Scores | None, name: str
) -> str:
    what, recipe = f"`{base}`, pruned", []
    if pruning:
        method = str(pruning.get("method"))
        what += f" to {pruning.get('sparsity')} by {METHODS.get(method, method)}"
        recipe.append(_yaml({"prune": pruning}))
    if manifest.get("command") == "repair":
        what += ", then repaired at the same zeros"
        recipe += [_yaml({"repair": manifest["arguments"]})]
    parts = [
        [part, f"{counts['weights']:,}", f"{counts['sparsity']:.1%}"]
        for part, counts in manifest["parts"].items()
        if counts["weights"]
    ]
    versions = ", ".join(f"{package} {version}" for package, version in dict(manifest.get("versions", {})).items())
    blocks = [f"# {name}", f"{printable(what)}, with `ressa`."]
    blocks += [_table(["part", "weights in pruned matrices", "zeros"], parts), *(_scored(scores) if scores else [])]
    blocks += ["## Load it", _load(folder, name, "import ressa.packed\n" if _is_packed(manifest) else "")]
    blocks += [_stored(manifest)]
    return "\n\n".join([*blocks, "## Recipe", *recipe, f"Made with {printable(versions)}."]) + "\n"


def _scored(scores: Scores) -> list[str]:
    rows = []
    for name, value in scores.values.items():
        sure = scores.intervals.get(name)
        rows.append([metric_name(name), f"{value:.1%}", f"{sure[0]:.1%} to {sure[1]:.1%}" if sure else ""])
    if scores.kl is not None:
        rows.append(["KL to the dense model (nats)", f"{scores.kl:.4f}", ""])
    return ["## Scores", f"{_asked(scores)}.", _table(["", "score", "95 % interval"], rows)]


def _is_packed(manifest: Mapping[str, Any]) -> bool:
    return dict(manifest.get("export", {})).get("format") == "packed"


def _stored(manifest: Mapping[str, Any]) -> str:
    """How the folder is stored, and what its weights went through on the way."""
    export = dict(manifest.get("export", {}))
    form = {"packed": PACKED, "compressed-tensors": COMPRESSED}.get(export.get("format", ""), DENSE)
    rounding = dict(export.get("before", {})) if form == DENSE else export
    values = dict(rounding.get("arguments", {})).get("values", "same")
    return form + ("" if values == "same" else ROUNDED.format(len(rounding["linears"]), values))


def _load(folder: Path, name: str, first: str) -> str:
    kind = str((read_object(folder / "config.json").get("architectures") or [""])[0])
    auto = next((name for end, name in AUTO.items() if kind.endswith(end)), "AutoModelForImageTextToText")
    return (
        f"```python\n{first}from transformers import AutoProcessor, {auto}\n\n"
        f"model = {auto}.from_pretrained({name!r})\nprocessor = AutoProcessor.from_pretrained({name!r})\n```"
    )


def _yaml(commands: Mapping[str, Mapping[str, Any]]) -> str:
    """Arguments that were given a value; no letter in it can end the block."""
    given = {verb: {k: v for k, v in arguments.items() if v is not None} for verb, arguments in commands.items()}
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    return "```yaml\n" + "\n".join(printable(line) for line in text.replace("```", "'''").splitlines()) + "\n```"


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---", *("---:" for _ in headers[1:])], *rows]
    return "\n".join(f"| {' | '.join(printable(cell).replace('|', '/') for cell in line)} |" for line in lines)
