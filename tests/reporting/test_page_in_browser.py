"""The page as Chromium shows it: silent, without a network, by keyboard, wide and narrow, light and dark."""

from __future__ import annotations

import os
from pathlib import Path

import browser
import pytest
from made_run import SCRIPT, made_run

from ressa.reporting.page.page import report

PROGRAM = browser.found()
AXE = Path(os.environ.get("AXE", "node_modules/axe-core/axe.min.js"))
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"none of {', '.join(browser.NAMES)} is on the PATH")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    for n, share in enumerate((0.25, 0.5, 0.75)):
        made_run(root / "study" / f"cell{n}", sparsity=f"{share:.0%}", share=share)
    report([root / "study"], root / "report.html")
    with browser.browser(PROGRAM) as page:
        page.open(root / "report.html")
        yield page


def test_the_page_opens_without_a_word_in_the_console_and_without_a_request(shown):
    assert shown.faults == []
    assert [one for one in shown.requests if not one.startswith(("file:", "data:"))] == []
    assert shown.run("document.images.length > 0 && [...document.images].every(i => i.naturalWidth > 0)")


def test_a_script_in_a_question_is_read_and_not_run(shown):
    assert SCRIPT in shown.run("document.body.innerText")
    assert shown.run("document.scripts.length") == 1


def test_a_script_that_found_its_way_into_the_page_would_not_run(shown):
    script = (
        "const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s); s.remove()"
    )
    shown.run(script)
    assert shown.run("window.ran") is None
    shown.faults.clear()  # that it was refused


def filtered(page, show: str, kind: str = "") -> list[str]:
    return page.run(
        f"""(() => {{
        for (const [id, value] of [['show', {show!r}], ['kind', {kind!r}]]) {{
            const select = document.getElementById(id);
            select.value = value;
            select.dispatchEvent(new Event('change', {{bubbles: true}}));
        }}
        return [...document.querySelectorAll('.cards > li')].filter(li => li.checkVisibility())
            .map(li => li.querySelector('h3').textContent);
        }})()"""
    )


def test_the_filters_show_what_they_say(shown):
    mended, broke = ["What colour is it?", "What | `shape` *is* it?"], ["And this?"]
    assert filtered(shown, "mended") == mended
    assert filtered(shown, "broke") == broke
    assert sorted(filtered(shown, "differ")) == sorted(mended + broke)
    assert filtered(shown, "mended", "colour") == mended[:1]
    assert shown.run("document.getElementById('count').textContent") == "1 of 4 shown"
    assert len(filtered(shown, "")) == 4


def test_all_that_can_be_used_is_reached_by_keyboard_the_filters_among_it(shown):
    shown.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = []
    for _ in range(60):
        for kind in ("keyDown", "keyUp"):
            shown.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(shown.run("document.activeElement.id || document.activeElement.className"))
    assert reached[0] == "skip"
    assert {"show", "kind", "button", "wide"} <= set(reached)


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_its_window(shown, width):
    shown.size(width)
    assert shown.run("document.documentElement.scrollWidth") <= width
    assert shown.run("document.querySelector('.verdict').getBoundingClientRect().width") > 0.4 * min(width, 900)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(shown, scheme):
    if not AXE.is_file():
        pytest.skip(f"no {AXE}: npm i axe-core, or name its axe.min.js in AXE")
    shown.size(1440)
    shown.colours(scheme)
    colour = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert shown.run("getComputedStyle(document.body).backgroundColor") == colour
    shown.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    shown.run(AXE.read_text(encoding="utf-8"))
    faults = "r.violations.map(v => [v.impact, v.id, v.nodes.slice(0, 3).map(n => n.html)])"
    assert shown.run(f"axe.run().then(r => {faults})") == []


def test_without_its_script_every_answer_is_there(shown, tmp_path):
    shown.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        run = made_run(tmp_path / "run")
        report([run], tmp_path / "r.html")
        shown.open(tmp_path / "r.html")
        assert shown.run("[...document.querySelectorAll('.cards > li')].every(li => li.checkVisibility())")
        assert shown.run("document.getElementById('filters').hidden")
    finally:
        shown.call("Emulation.setScriptExecutionDisabled", value=False)
