"""What the documentation shows is run, and what it lists is compared with the code.

Fenced blocks of a page run in order, in one empty folder:

    ```python     executed; the blocks of a page share their names
    ```console    lines `$ ressa ...` go through the command line; what is shown below them must be printed (... is any
                  text), and a line `ressa: ...` means that the command is refused with exit code 2; other lines rest
    ```yaml       read as a recipe or a study, and kept under the name in its first line, `# name.yaml`
    ```jsonl      read as records; the pictures they name are made
    ```sh or none lines `ressa ...` are parsed, not run: for models and data that are not here

What several pages begin with is made once, and copied. A block marked slow (```console slow) runs under `pytest -m
slow` only. `make tables` writes the tables of settings anew.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import ressa.demo
from pages import PAGES, ROOT, commands, fences, named, opening
from ressa.benching.settings import Bench
from ressa.cli import app, main
from ressa.data.records import read_records
from ressa.evaluation.settings import Evaluate
from ressa.exporting.settings import Export
from ressa.inspection.settings import Plan
from ressa.methods import METHODS
from ressa.pipeline.recipe import Recipe, read_recipe
from ressa.pipeline.study import read_study
from ressa.preparation.settings import Prepare
from ressa.preparation.sources import SOURCES
from ressa.pruning.settings import Prune
from ressa.repairing.settings import Repair
from ressa.settings import Runtime

LINKED = [*PAGES, ROOT / "CHANGELOG.md"]
SETTINGS = {
    "data": Prepare,
    "inspect": Plan,
    "prune": Prune,
    "repair": Repair,
    "evaluate": Evaluate,
    "packed": Export,
    "bench": Bench,
    "run": Recipe,
    "machines": Runtime,
}


# ---- what is shown is run --------------------------------------------------------------------------------------------


def _runs() -> Iterator[Any]:
    for page in PAGES:
        yield pytest.param(page, False, id=named(page))
        if any(fence.slow for fence in fences(page)):
            yield pytest.param(page, True, id=f"{named(page)}, slow blocks too", marks=pytest.mark.slow)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21 asks for it
@pytest.mark.parametrize(("page", "slow"), list(_runs()))
def test_what_a_page_shows_runs(page, slow, tmp_path, monkeypatch, called, verbosity):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for fence in fences(page):
        if fence.slow and not slow:
            continue
        where = f"{named(page)}:{fence.line}"
        needs_demo = fence.language in ("python", "console", "yaml") and re.search(r"\bdemo\b", fence.text)
        if needs_demo and not ressa.demo.EMBEDDED.is_dir():
            pytest.skip(f"{where} needs the embedded model, which is not there yet")
        if fence.language == "python":
            exec(compile(fence.text, where, "exec"), names)
        elif fence.language == "console":
            run_console(fence.text, where, called)
        elif fence.language == "yaml":
            run_yaml(fence.text, tmp_path)
        elif fence.language == "jsonl":
            run_jsonl(fence.text, tmp_path / f"records of line {fence.line}")
        elif fence.language in ("sh", ""):
            parse_only(fence.text, where)


@pytest.fixture
def verbosity():
    """The command line silences transformers; the tests after this one get it back as it was."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(before)
    if bars:
        logging.enable_progress_bar()


def run_console(text: str, where: str, called: Callable[[list[str]], tuple[int, str]]) -> None:
    for command, shown in commands(text):
        if command[0] != "ressa":
            continue
        refused = any(line.startswith("ressa: ") for line in shown)
        code, told = called(command)
        assert code == (2 if refused else 0), f"{where}: {shlex.join(command)}\n{told}"
        printed = [" ".join(line.split()) for line in told.splitlines()]
        for line in shown:
            pattern = re.sub(r"([][?*])", r"[\1]", " ".join(line.split())).replace("...", "*")
            assert fnmatch.filter(printed, pattern), f"{where}: {line!r} is not printed, but\n{told}"


@pytest.fixture(scope="session")
def beginnings(tmp_path_factory) -> dict[tuple[tuple[str, ...], ...], tuple[Path, str]]:
    """By the commands with which several pages begin: the folder then, once it is there, and what was said."""
    begun = Counter(tuple(words[:n]) for words in map(opening, PAGES) for n in range(1, len(words) + 1))
    root = tmp_path_factory.mktemp("beginnings")
    shared = [words for words, pages in begun.items() if pages > 1]
    return {words: (root / str(i), "") for i, words in enumerate(shared)}


@pytest.fixture
def called(page, beginnings, tmp_path, monkeypatch, capsys) -> Callable[[list[str]], tuple[int, str]]:
    """Carries out the next command of the page: (exit code, what it printed)."""
    opens = opening(page)
    keys = (tuple(opens[:n]) for n in range(1, len(opens) + 1))

    def call(command: list[str]) -> tuple[int, str]:
        folder, told = beginnings.get(key := next(keys, ()), (None, ""))
        if folder and folder.exists():
            shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
            return 0, told
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        code, told = ended.value.code or 0, "".join(capsys.readouterr())
        if folder and code == 0:
            shutil.copytree(tmp_path, folder)
            beginnings[key] = folder, told
        return code, told

    return call


def parse_only(text: str, where: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.startswith("ressa ") else []
        command: Any = typer.main.get_command(app)
        while (words := words[1:]) and not words[0].startswith("-") and hasattr(command, "commands"):
            assert words[0] in command.commands, f"{where}: there is no {line}"
            command = command.commands[words[0]]
        if not hasattr(command, "commands"):
            command.make_context(where, words)  # raises what the user would read


def run_yaml(text: str, folder: Path) -> None:
    name = re.match(r"# ([\w-]+\.yaml)\n", text)
    path = folder / (name[1] if name else "recipe of a page.yaml")
    path.write_text(text, encoding="utf-8")
    (read_study if re.search(r"(?m)^recipe:", text) else read_recipe)(path)


def run_jsonl(text: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    for picture in re.findall(r'"([^"]+\.(?:png|jpg))"', text):
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / picture)
    records = read_records(folder)
    assert len(records) == text.count("\n")
    for record in records:
        assert record.references
        if record.image:
            record.open_image()


# ---- what is listed is there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", LINKED, ids=named)
def test_what_a_page_links_to_exists(page):
    prose = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose):
        path, _, anchor = (target[0] or target[1]).partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{named(page)} links to {path}, which is not there"
        assert not anchor or anchor in anchors(there), f"{named(page)}: {path} has no heading #{anchor}"
    for path in re.findall(r"`((?:src|tests|docs|scripts|benchmarks)/[\w./-]+)`", prose):
        assert "NAME" in path or (ROOT / path).exists(), f"{named(page)} names {path}, which is not there"


def anchors(page: Path) -> set[str]:
    """Headings as GitHub makes anchors of them."""
    titles = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("verb", SETTINGS)
def test_the_table_of_settings_says_what_the_code_says(verb):
    page = ROOT / "docs" / f"{verb}.md"
    text = page.read_text(encoding="utf-8")
    assert with_table(text, SETTINGS[verb]) == text, f"{named(page)} is out of date; run: make tables"


def with_table(text: str, cls: type[Any]) -> str:
    """The text of a page with its table of the settings of `cls` as it should be."""
    begin, end = f"<!-- settings: {cls.__name__} -->\n", "<!-- end of settings -->"
    assert text.count(begin) == 1
    before, _, rest = text.partition(begin)
    return before + begin + settings_table(cls) + end + rest.partition(end)[2]


def settings_table(cls: type[Any]) -> str:
    rows = [
        f"| `{f.name}` | {_default(f.default)} | {f.metadata['help']} |" for f in fields(cls) if "help" in f.metadata
    ]
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows]) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def test_every_option_of_the_command_line_is_on_the_page_of_its_verb():
    group = typer.main.get_command(app)
    pages = {"demo": "run", "card": "report", "export": "packed"}
    pages |= dict.fromkeys(group.commands["data"].commands, "data")
    told = {**group.commands, **group.commands["data"].commands}
    del told["data"]
    for name, command in told.items():
        text = (ROOT / "docs" / f"{pages.get(name, name)}.md").read_text(encoding="utf-8")
        for option in (p for p in command.params if p.param_type_name == "option" and p.name != "help"):
            long = max(option.opts, key=len)
            assert re.search(rf"`({option.name}`|{long}[` ])", text), f"docs say nothing of `ressa {name} {long}`"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_page_that_the_page_of_prune_and_the_readme_link_to(method):
    assert f"# {method}\n" in (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8").lower()
    for page, link in (("docs/prune.md", f"(methods/{method}.md)"), ("README.md", f"(docs/methods/{method}.md)")):
        assert link in (ROOT / page).read_text(encoding="utf-8"), f"{page} does not link to the page of {method}"


def test_the_table_of_official_data_has_every_source():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.partition("| NAME | SOURCE |")[2].partition("\n\n")[0]
    cells = re.findall(r"(?m)^\|(.+?)\|", table)
    assert set(re.findall("`(.+?)`", " ".join(cells))) == set(SOURCES)


if __name__ == "__main__":
    for verb, cls in SETTINGS.items():
        path = ROOT / "docs" / f"{verb}.md"
        path.write_text(with_table(path.read_text(encoding="utf-8"), cls), encoding="utf-8")
