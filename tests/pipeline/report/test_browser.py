"""The page in a real browser: what its script draws, and that it never complains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.report.page import ReportData, render

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=4000",
    "--enable-logging=stderr",
    "--v=0",
]


class Page(HTMLParser):
    """Feature cards as drawn: their numbers, and the text of each element with a class we look for."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.features: list[str] = []
        self.count = ""
        self.tags: list[str] = []
        self.tops: list[str] = []
        self._in_count = False
        self._in_top = 0
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        facts = dict(attrs)
        if tag == "article" and (facts.get("class") or "").startswith("feature"):
            self.features.append(facts.get("data-latent") or "")
        self._in_count = facts.get("id") == "count"
        if self._in_top or "top-token" in (facts.get("class") or "").split():
            if not self._in_top:
                self.tops.append("")
            self._in_top += tag == "span"

    def handle_endtag(self, tag: str) -> None:
        self._in_count = False
        if self._in_top and tag == "span":
            self._in_top -= 1

    def handle_data(self, data: str) -> None:
        if self._in_count:
            self.count += data
        if self._in_top:
            self.tops[-1] += data


@pytest.fixture
def browse(tmp_path: Path, make_report_data: Callable[..., ReportData]) -> Callable[..., Page]:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is not installed; CI must test the page: apt-get install chromium")
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    browser: str = CHROMIUM
    path = tmp_path / "report.html"
    visits = 0

    def browse(fragment: str = "", *, script: str = "") -> Page:
        nonlocal visits
        visits += 1
        page = render(make_report_data())
        path.write_text(page.replace("</body>", f"<script>{script}</script></body>") if script else page, "utf-8")
        run = subprocess.run(
            [
                browser,
                *FLAGS,
                f"--user-data-dir={tmp_path / f'profile-{visits}'}",
                "--dump-dom",
                path.as_uri() + fragment,
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        complaints = [line for line in run.stderr.splitlines() if re.search(r"CONSOLE|Uncaught|Refused", line)]
        assert not complaints
        return Page(run.stdout)

    return browse


def test_features_are_drawn_and_hostile_text_is_text(browse: Callable[..., Page], hostile: str) -> None:
    page = browse()
    assert page.features == ["3", "7", "21"]
    assert page.count == "3 features"
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert page.tops[0] == hostile.replace(" ", "\u00b7")
    assert page.tops[2:] == ["\u00b7apple", "\u00b7apple", "\u00b7pear", "\u00b7pear"]


def test_the_address_holds_dictionary_filter_and_order(browse: Callable[..., Page]) -> None:
    page = browse("#dictionary=sae&find=APPLE")
    assert page.features == ["7"]
    assert page.count == "1 of 3 features"
    assert browse("#dictionary=transcoder").features == ["5"]
    assert browse("#sort=density").features == ["21", "7", "3"]


def test_typing_filters_and_the_keyboard_walks(browse: Callable[..., Page]) -> None:
    script = """
      const key = (target, name) => target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
      const find = document.getElementById("find");
      key(document.body, "/");
      const opened = document.activeElement === find;
      find.value = "(";
      find.dispatchEvent(new Event("input"));
      const visited = [];
      for (const name of ["ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"]) {
        key(document.activeElement, name);
        visited.push(document.activeElement.dataset.latent);
      }
      key(document.activeElement, "Enter");
      const whole = document.activeElement.querySelector(".contexts").classList.contains("open");
      key(document.activeElement, "Escape");
      const found = [opened, visited, whole, find.value, location.hash];
      document.getElementById("count").textContent = JSON.stringify(found);
    """
    page = browse("#sort=latent", script=script)
    assert page.count == '[true,["3","7","21","7"],true,"","#sort=latent&feature=7"]'


def test_a_click_shows_another_dictionary(browse: Callable[..., Page]) -> None:
    script = "document.querySelectorAll('.tabs button')[1].click();"
    page = browse(script=script)
    assert page.features == ["5"]
    assert page.tags.count("script") == 3
