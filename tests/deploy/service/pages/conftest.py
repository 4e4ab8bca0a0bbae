"""What the tests of the pages share. Test modules have no packages, so the path finds it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chromium import CHROMIUM, Browser
from served import Site


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is not installed; CI must test the pages: apt-get install chromium")
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    made: list[Site] = []

    def make_site(*, has_policy: bool = False) -> Site:
        made.append(Site(tmp_path, has_policy=has_policy))
        return made[-1]

    yield make_site
    for site in made:
        site.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as browser:
        yield browser
