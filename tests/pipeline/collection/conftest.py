"""The small model and corpus, made once for all tests here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Test modules have no packages, so the file beside them is found through the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_job import save_model

    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_job import save_corpus

    return save_corpus(tmp_path_factory.mktemp("corpus") / "text")
