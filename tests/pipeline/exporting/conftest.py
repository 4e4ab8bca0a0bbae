"""The stores that the tests here export."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Test modules have no packages, so the file beside them is found through the path.
sys.path.insert(0, str(Path(__file__).parent))

from export_source import write_source

from pipeline.store.reader import Store


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Store]:
    """Writer of a store of two passes."""
    return lambda **facts: write_source(str(tmp_path / "source"), **facts)
