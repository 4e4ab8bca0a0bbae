"""A tied autoencoder finds most at a middle penalty (Cunningham et al. 2023, section 3)."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "tied_sae.py"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.slow
def test_recovery_peaks_between_light_and_heavy_penalties(example: SimpleNamespace) -> None:
    found = {}
    for alpha in (0.1, 1.5, 8.0):
        dictionary = example.train(alpha, 256, num_steps=300, batch_rows=256)
        assert torch.equal(dictionary.encoder, dictionary.decoder)
        found[alpha] = example.examine(dictionary)
    light, middle, heavy = found.values()
    assert middle.mmcs > max(light.mmcs, heavy.mmcs) + 0.05
    assert light.l0 > middle.l0 > heavy.l0
    assert light.fvu < middle.fvu < heavy.fvu
