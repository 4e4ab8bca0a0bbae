"""Collection in one process: the stored rows are the model's, whatever unit wrote them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_job import HOOKS, WIDTH, built_table, digests, small_spec
from transformers import LlamaForCausalLM

from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.reader import Store
from pipeline.store.words import to_float32, to_words
from schemas.collect import CollectSpec
from schemas.errors import HookPointError, MismatchError


def collected(spec: CollectSpec) -> Store:
    for one in prepare(spec, built_table(spec)):
        collector = UnitCollector.open(one.of)
        for _ in collect_units(collector, one.units):
            pass
        collector.writer.finish()
    return Store.open(spec.output)


def reference(model: Path, store: Store) -> np.ndarray:
    """Residual stream after block 0 of every row, [T, D], each context run alone by transformers."""
    network = LlamaForCausalLM.from_pretrained(model)
    tokens = store.tokens()
    starts = [*np.flatnonzero(tokens.position == 0), len(tokens)]
    parts = []
    for start, stop in pairwise(starts):
        ids = torch.from_numpy(tokens.token_id[start:stop].astype(np.int64))[None]
        with torch.inference_mode():
            parts.append(network(ids, output_hidden_states=True).hidden_states[1][0].numpy())
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_row_is_what_the_model_computes_for_its_context(
    dtype: str, model: Path, corpus: Path, tmp_path: Path
) -> None:
    store = collected(small_spec(model, corpus, tmp_path / "store", storage={"dtype": dtype}))
    assert store.num_units > 5
    rows = to_float32(store.read_rows(HOOKS[0], 0, 16), store.dtype)
    assert rows.shape == (16, WIDTH)
    got = np.concatenate(
        [
            to_float32(store.read_rows(HOOKS[0], start, min(start + 16, store.num_rows)), store.dtype)
            for start in range(0, store.num_rows, 16)
        ]
    )
    tolerance = {"bfloat16": 8e-3, "float16": 1e-3, "float32": 1e-5}[dtype]
    np.testing.assert_allclose(got, reference(model, store), rtol=tolerance, atol=1e-5)


def test_rounding_is_the_stores_own(model: Path, corpus: Path, tmp_path: Path) -> None:
    exact = collected(small_spec(model, corpus, tmp_path / "exact", storage={"dtype": "float32"}))
    words = collected(small_spec(model, corpus, tmp_path / "words"))
    rows = np.arange(exact.num_rows)
    for hook in HOOKS:
        np.testing.assert_array_equal(words.gather(hook, rows), to_words(exact.gather(hook, rows), "bfloat16"))


def test_a_second_computation_writes_the_same_bytes(model: Path, corpus: Path, tmp_path: Path) -> None:
    collected(small_spec(model, corpus, tmp_path / "a" / "store"))
    collected(small_spec(model, corpus, tmp_path / "b" / "store"))
    assert digests(tmp_path / "a" / "store") == digests(tmp_path / "b" / "store")


def test_the_order_of_units_does_not_matter(model: Path, corpus: Path, tmp_path: Path) -> None:
    collected(small_spec(model, corpus, tmp_path / "a" / "store"))
    spec = small_spec(model, corpus, tmp_path / "b" / "store")
    (one,) = prepare(spec, built_table(spec))
    collector = UnitCollector.open(one.of)
    for unit in reversed([*one.units]):
        collector.collect(unit)
    collector.writer.finish()
    assert digests(tmp_path / "a" / "store") == digests(tmp_path / "b" / "store")


def test_a_ledger_entry_tells_who_wrote_it_and_how_long_it_took(model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = small_spec(model, corpus, tmp_path / "store")
    (one,) = prepare(spec, built_table(spec))
    entry = UnitCollector.open(one.of, worker="w7").collect(2, attempt=1)
    assert (entry.unit, entry.worker, entry.attempt) == (2, "w7", 1)
    assert {"read", "forward"} <= set(entry.seconds)


def test_an_unknown_hook_point_leaves_no_store_behind(model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = small_spec(model, corpus, tmp_path / "store", hook_points=["blocks.0.hook_resid_pots"])
    (one,) = prepare(spec, built_table(spec))
    with pytest.raises(HookPointError, match="hook_resid_post"):
        UnitCollector.open(one.of)
    assert not (tmp_path / "store").exists()


def test_a_worker_that_sees_another_model_refuses(model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = small_spec(model, corpus, tmp_path / "store")
    (one,) = prepare(spec, built_table(spec))
    one.of.record.identity["model"]["weights"] = "another"
    with pytest.raises(MismatchError, match="weights"):
        UnitCollector.open(one.of)


FILLS_UP = """
import resource, sys
from pipeline.collection.prepare import prepare, table_url
from pipeline.collection.unit import UnitCollector
from pipeline.tokens.table import TokenTable
from schemas.collect import CollectSpec
from schemas.errors import ResourceError
spec = CollectSpec.model_validate_json(sys.argv[1])
(one,) = prepare(spec, TokenTable.open(table_url(spec)))
collector = UnitCollector.open(one.of)
collector.collect(0)
collector.collect(1)
# No file may grow beyond 2000 bytes from here on: a write fails as it does on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    collector.collect(2)
except ResourceError as error:
    print(error)
"""


def test_a_disk_that_fills_up_keeps_what_is_committed(model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = small_spec(model, corpus, tmp_path / "a" / "store")
    built_table(spec)
    done = subprocess.run(
        [sys.executable, "-c", FILLS_UP, spec.model_dump_json()],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert "Free space" in done.stdout, done.stderr
    assert str(tmp_path / "a" / "store") in done.stdout
    (one,) = prepare(spec, built_table(spec))
    assert list(one.units) == list(range(2, one.of.num_units))
    collected(spec)
    collected(small_spec(model, corpus, tmp_path / "b" / "store"))
    assert digests(tmp_path / "a" / "store") == digests(tmp_path / "b" / "store")


def test_statistics_that_were_asked_for_are_measured(model: Path, corpus: Path, tmp_path: Path) -> None:
    wanted = {"covariance": True, "outlier_tokens": 3}
    store = collected(small_spec(model, corpus, tmp_path / "store", statistics=wanted))
    rows, tokens = store.read_values(HOOKS[0], 0, store.num_rows).astype(np.float64), store.tokens()
    np.testing.assert_allclose(store.covariance(HOOKS[0]), np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-12)
    greatest = np.argsort(-np.linalg.norm(rows, axis=1), kind="stable")[:3]
    outliers = store.statistics[HOOKS[0]].outliers
    assert [one.row for one in outliers] == greatest.tolist()
    assert [one.token_id for one in outliers] == tokens.token_id[greatest].tolist()
