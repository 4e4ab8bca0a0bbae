"""Where a unit-norm dictionary starts: the geometric median of rows that training is to see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.dictionaries.geometric_median import geometric_median
from pipeline.order.eligible import scan
from pipeline.store.reader import Store
from pipeline.training import result, sampling
from pipeline.training.world import SingleWorld
from schemas.train import RowFilter, TrainSpec


def test_rows_are_eligible_and_spread_over_the_store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(store_url)
    eligible = scan(store, ["resid"], RowFilter(), "train")
    kept = np.concatenate([eligible.rows_of(chunk) for chunk in range(24)])
    every = torch.from_numpy(store.gather_values("resid", kept))
    monkeypatch.setattr(sampling, "NUM_CHUNKS", 24)
    assert torch.equal(sampling.sample_rows(store, "resid", eligible), every)

    monkeypatch.setattr(sampling, "NUM_CHUNKS", 3)
    monkeypatch.setattr(sampling, "NUM_ROWS", 60)
    some = sampling.sample_rows(store, "resid", eligible)
    assert 60 <= len(some) <= 120
    known = {row.numpy().tobytes(): place for place, row in enumerate(every)}
    places = [known[row.numpy().tobytes()] for row in some]
    assert places == sorted(set(places))
    assert places[0] < len(every) / 24
    assert places[-1] > len(every) * 23 / 24 - 10


def test_the_bias_starts_at_their_median(make_spec: Callable[..., TrainSpec], store_url: str) -> None:
    common = {"sources": ["resid"], "num_latents": 48}
    spec = make_spec(
        dictionaries=[
            {"name": "unit", **common, "activation": {"kind": "relu_l1_unit_norm"}},
            {"name": "topk", **common, "activation": {"kind": "topk", "k": 3}},
        ]
    )
    store = Store.open(store_url)
    eligible = scan(store, ["resid"], RowFilter(), "train")
    unit, topk = result.start(
        spec, store, ["resid"], eligible, SingleWorld(), device=torch.device("cpu"), num_threads=1
    )
    rows = sampling.sample_rows(store, "resid", eligible)
    expected = geometric_median(rows) * unit.dictionary.scales["resid"]
    torch.testing.assert_close(unit.dictionary.b_dec, expected.float())
    assert not torch.allclose(unit.dictionary.b_dec, topk.dictionary.b_dec, atol=1e-3)
    torch.testing.assert_close(unit.dictionary.decoder.norm(dim=1), torch.ones(48))
    assert not torch.allclose(unit.dictionary.encoder, unit.dictionary.decoder)
    assert float(unit.dictionary.encoder.detach().abs().max()) <= 1 / 4
