"""The store that the tests here shuffle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Test modules have no packages, so the file beside them is found through the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """500 rows: the last unit and chunk are short."""
    from small_store import write_source

    url = str(tmp_path_factory.mktemp("source") / "store")
    write_source(url)
    return url
