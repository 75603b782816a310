"""The pages of the demo and of the performance study, made by the commands, as Chromium shows them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import browser
import pytest
import yaml
from test_page_in_browser import AXE, filtered

import ressa
import ressa.demo
from ressa.pipeline.recipe import read_yaml

PROGRAM = browser.found()
STUDY = Path(ressa.__file__).parent / "studies" / "performance.yaml"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=f"none of {', '.join(browser.NAMES)} is on the PATH"),
    pytest.mark.skipif(not ressa.demo.EMBEDDED.is_dir(), reason="the embedded model is not there"),
]


def called(verb: str, *arguments: str, cwd: Path) -> None:
    """`ressa verb`, as a user gives it."""
    program = "from ressa.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, verb, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """What `ressa demo` writes, and the performance study with few of everything: {name: its folder}."""
    root = tmp_path_factory.mktemp("real")
    called("demo", "--out", "demo", "--threads", "1", cwd=root)
    values = read_yaml(STUDY, "the study")
    values |= {"out": "performance", "seeds": [0], "grid": values["grid"] | {"model": ["demo"]}}
    values["recipe"]["repair"]["samples"], values["recipe"]["evaluate"]["limit"] = 64, 100
    (root / "study.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    called("study", "study.yaml", "--threads", "1", cwd=root)
    return {name: root / name for name in ("demo", "performance")}


@pytest.fixture(scope="module", params=["demo", "performance"])
def opened(request, folders):
    with browser.browser(PROGRAM) as page:
        page.open(folders[request.param] / "report.html")
        yield folders[request.param], page


def test_it_is_silent_asks_no_network_and_fits_its_window(opened):
    _, page = opened
    for width in (390, 1440):
        page.size(width)
        assert page.run("document.documentElement.scrollWidth") <= width
    assert page.faults == []
    assert [one for one in page.requests if not one.startswith(("file:", "data:"))] == []


def test_its_numbers_are_those_of_the_result_files(opened):
    folder, page = opened
    rows = page.run("[...document.querySelectorAll('#models tbody tr')].map(r => [...r.cells].map(c => c.textContent))")
    scores = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.rglob("scores.json"))]
    shown = sorted(float(row[1]) for row in rows if row[1])
    found = {round(100 * score["exact_match"], 1) for score in scores}
    assert set(shown) == found
    if (table := folder / "results.csv").is_file():
        with table.open(encoding="utf-8") as lines:
            values = [row for row in csv.DictReader(lines) if row["measurement"] == "exact_match"]
        assert {round(100 * float(row["value"]), 1) for row in values} == set(shown)


def test_the_filter_of_mended_answers_shows_some_and_not_all(opened):
    _, page = opened
    everything = filtered(page, "")
    assert 0 < len(filtered(page, "mended")) < len(everything)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_in_it(opened, scheme):
    if not AXE.is_file():
        pytest.skip(f"no {AXE}: npm i axe-core, or name its axe.min.js in AXE")
    _, page = opened
    page.size(1440)
    page.colours(scheme)
    page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.run(AXE.read_text(encoding="utf-8"))
    faults = "r.violations.map(v => [v.impact, v.id, v.nodes.slice(0, 3).map(n => n.html)])"
    assert page.run(f"axe.run().then(r => {faults})") == []
