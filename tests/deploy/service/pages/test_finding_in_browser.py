"""Stores, dictionaries and their comparison in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import Browser
from served import Site
from things import HOOK, write_dictionary, write_evaluation, write_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = "<img src=x onerror=alert(1)>"
REPORT = """<!doctype html><meta charset="utf-8"><p id="said">report</p><script>
let found = "nothing";
try { found = sessionStorage.length; } catch (error) { found = error.name; }
fetch("/api/v1/whoami").then(() => "answered", () => "refused").then((asked) => {
  document.getElementById("said").textContent = `${found} ${asked} ${origin}`;
});
</script>"""


def test_stores_are_found_and_shown(make_site: Callable[..., Site], browser: Browser, tmp_path: Path) -> None:
    site = make_site()
    write_store(f"{tmp_path}/lab/store", HOSTILE)
    browser.open(f"{site.url}/stores")
    browser.wait("document.getElementById('empty').textContent.startsWith('Name a folder')")
    browser.run("document.getElementById('url').focus()")
    browser.type(f"{tmp_path}/lab")
    browser.press("Enter", 13, "\r")
    browser.wait("document.querySelectorAll('#rows tr').length === 1")
    row = browser.run("document.querySelector('#rows tr').innerText")
    for word in ("lab/store", "complete", "tiny", HOSTILE, HOOK, "256", "bfloat16, zarr", "never", "no limit"):
        assert word in row, word
    browser.run("document.querySelector('#rows a').click()")
    browser.wait("document.querySelectorAll('#points tr').length === 1")
    assert browser.run("document.querySelector('#points tr').innerText").split()[:3] == [HOOK, "8", "256"]
    assert HOSTILE in browser.run("document.getElementById('provenance').innerText")
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.getElementById('check-section').hidden")
    browser.run("document.getElementById('check').click()")
    assert "No problems in" in browser.wait("document.getElementById('check-words').textContent")
    browser.open(f"{site.url}/stores?url={tmp_path}/lab")
    browser.wait("document.querySelector('#rows .sound') !== null")
    browser.open(f"{site.url}/stores?url=/nowhere/at/all")
    browser.wait("!document.getElementById('notice').hidden")
    assert "/nowhere/at/all" in browser.run("document.getElementById('notice').textContent")
    # The browser notes the answer of 404 by itself.
    assert [each for each in browser.complaints if "404" not in each] == []


def test_dictionaries_are_compared_and_a_report_reaches_nothing(
    make_site: Callable[..., Site], browser: Browser, tmp_path: Path
) -> None:
    site = make_site()
    folder = tmp_path / "run"
    for name, l0, fvu in (("small", 8, 0.3), ("middle", 16, 0.2), ("large", 128, 0.05)):
        write_dictionary(folder / "dictionaries", name, l0=l0, fvu=fvu)
    write_evaluation(folder, "large", l0=120, fvu=0.0625, report=REPORT)
    browser.open(f"{site.url}/dictionaries?url={folder}")
    browser.wait("document.querySelectorAll('#plane .point').length === 3")
    marks = "[...document.querySelectorAll('#plane .point')].map(each => each.querySelector('title').textContent)"
    assert sorted(browser.run(marks)) == [
        "large: L0 120, FVU 0.0625", "middle: L0 16, FVU 0.2", "small: L0 8, FVU 0.3",
    ]  # fmt: skip
    # Sparser lies further left, and more faithful lower: SVG counts y from the top.
    circles = "[...document.querySelectorAll('#plane circle')]"
    places = f"{circles}.map(each => [each.cx.baseVal.value, each.cy.baseVal.value])"
    found = sorted(browser.run(places))
    assert found[0][1] < found[1][1] < found[2][1]
    assert all(66 < x < 544 and 14 < y < 372 for x, y in found)
    assert browser.run("document.querySelectorAll('#plane .hollow').length") == 2
    table = browser.run("[...document.querySelectorAll('#rows tr')].map(each => each.cells[1].innerText)")
    assert table == ["8", "16", "120"]
    browser.run("document.querySelectorAll('#rows a')[1].focus()")
    assert browser.run("document.querySelector('#plane .chosen title').textContent").startswith("middle")
    for kind, num_points in (("evaluation", 1), ("training", 3)):
        browser.run(f"document.getElementById('figures').value = '{kind}'")
        browser.run("document.getElementById('figures').dispatchEvent(new Event('change'))")
        assert browser.run("document.querySelectorAll('#plane .point').length") == num_points
    browser.run("document.querySelectorAll('#rows a')[2].click()")
    browser.wait("document.querySelector('#evaluations button') !== null")
    assert "0.0625" in browser.run("document.getElementById('evaluations').innerText")
    browser.run("document.querySelector('#evaluations button').click()")
    frame = browser.wait("document.querySelector('#report iframe')?.getAttribute('sandbox')")
    assert frame == "allow-scripts"
    assert browser.in_frame("document.getElementById('said')?.textContent !== 'report' && document.body.innerText") == (
        "SecurityError refused null"
    )
    assert browser.run("document.getElementById('save').href").startswith("blob:")
