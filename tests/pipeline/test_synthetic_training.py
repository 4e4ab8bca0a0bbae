"""Training on rows as they are generated: it finds what is there, and comes to the same again."""

from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.similarity import max_cosines
from pipeline.synthetic import Superposition
from pipeline.synthetic_training import train_on_samples
from schemas.activation import TopK
from schemas.dictionary import DictionarySpec
from schemas.errors import SpecError

SPEC = DictionarySpec(name="one", sources=["rows"], num_latents=12, activation=TopK(k=1), learning_rate=5e-3)


def trained(num_steps: int, *, seed: int = 0, scale: float = 1.0) -> Dictionary:
    data = Superposition(6, 8, num_active=0.8, decay=1.0, seed=seed)
    return train_on_samples(
        SPEC, lambda num_rows: {"rows": data.sample(num_rows)}, {"rows": 8}, num_steps=num_steps, batch_rows=64,
        scales={"rows": scale},
    )  # fmt: skip


def test_planted_features_are_found() -> None:
    dictionary = trained(200, scale=4.0)
    assert dictionary.scales == {"rows": 4.0}
    truth = Superposition(6, 8, num_active=0.8, decay=1.0).features
    assert max_cosines(truth, dictionary.decoder.detach()).min() > 0.9
    assert max_cosines(truth, trained(0).decoder.detach()).min() < 0.9


def test_equal_samples_give_equal_weights_and_others_do_not() -> None:
    one, same, other = trained(5), trained(5), trained(5, seed=1)
    assert torch.equal(one.decoder, same.decoder)
    assert not torch.equal(one.decoder, other.decoder)


def test_rows_of_other_hook_points_are_refused() -> None:
    with pytest.raises(SpecError, match="rows"):
        train_on_samples(SPEC, lambda num_rows: {}, {"lines": 8}, num_steps=1, batch_rows=4)
