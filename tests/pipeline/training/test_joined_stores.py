"""Training on several stores of one token table: sources and targets in any of them, the same run after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dictionaries.folder import load_dictionary
from pipeline.training import engine
from pipeline.training.world import SingleWorld
from schemas.errors import HookPointError, MismatchError
from schemas.train import TrainSpec


def test_a_dictionary_over_two_stores_learns_and_resumes(
    make_spec: Callable[..., TrainSpec], store_url: str, late_store: str
) -> None:
    stores = {"early": store_url, "late": late_store}
    topk = {"kind": "topk", "k": 6, "aux_k": 8, "dead_after_tokens": 300}
    common = {"num_latents": 64, "activation": topk, "learning_rate": 5e-3}
    both = ["early/resid", "late/resid"]
    wanted = [
        {"name": "crosscoder", "sources": both, **common},
        {"name": "across", "sources": ["early/mlp_in"], "targets": ["late/mlp_out"], **common},
    ]
    whole = make_spec("whole", store=stores, dictionaries=wanted, num_epochs=4)
    records = []
    summary = engine.train(whole, SingleWorld(), report=records.append)
    first, last = (record["dictionaries"]["crosscoder"]["fvu"] for record in (records[0], records[-1]))
    assert last < 0.7 * first
    dictionary = load_dictionary(f"{whole.output}/crosscoder")
    assert dictionary.record is not None
    assert dictionary.record.d_source == dict.fromkeys(both, 16)
    assert summary["tokens"] > 0

    killed = make_spec("killed", store=stores, dictionaries=wanted, num_epochs=4)

    def kill(record: dict[str, int]) -> None:
        if record["step"] >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.train(killed, SingleWorld(), report=kill)
    engine.train(killed, SingleWorld())
    for name in ("crosscoder", "across"):
        weights = Path(name, "dictionary.safetensors")
        assert Path(killed.output, weights).read_bytes() == Path(whole.output, weights).read_bytes()
    # The same stores the other way round are another run: the names mean other models.
    swapped = make_spec(
        "whole", store={"early": stores["late"], "late": stores["early"]}, dictionaries=wanted, num_epochs=4
    )
    with pytest.raises(MismatchError, match="store_fingerprint"):
        engine.train(swapped, SingleWorld())
    lacking = make_spec("x", store=stores, dictionaries=[{"name": "d", "sources": ["resid"], **common}])
    with pytest.raises(HookPointError, match="'resid'"):
        engine.train(lacking, SingleWorld())
