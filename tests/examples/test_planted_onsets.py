"""Onsets and turns of planted features: some soon, all of them as a slow test."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.synthetic import PlantedOnsets

SCRIPT = Path(__file__).parents[2] / "examples" / "planted_onsets.py"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_onsets_are_found(example: SimpleNamespace) -> None:
    data = PlantedOnsets()
    found = example.examine(example.train(data), data)
    assert found.num_matched == found.num_exact_onsets == 48
    assert found.explained_variance > 0.98
    assert found.norm_before_onset < 0.01
    assert abs(found.cosine_rotated - found.cosine_planted) < 0.02
    assert found.cosine_unrotated > 0.99
