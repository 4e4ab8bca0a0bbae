"""Means come from a store's statistics; a store of another model, tokenizer or set of locations is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.circuits.means import model_tokenizer, open_store, read_means
from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.nodes import Nodes
from pipeline.circuits.planted import SPEC, save_planted
from pipeline.collection.prepare import prepare, table_url
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.reader import Store
from pipeline.tokens.table import build_table
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import CircuitSpec
from schemas.collect import CollectSpec
from schemas.errors import HookPointError, MismatchError
from schemas.network import NetworkSpec

EXAMPLE = Path(__file__).parents[3] / "examples" / "circuits.yaml"


def collected(model: Path, output: Path, **changes: Any) -> Store:
    facts = yaml.safe_load(EXAMPLE.read_text("utf-8"))["jobs"][0]
    facts["model"]["path"], facts["output"] = str(model), str(output)
    facts["tokens"] |= {"max_tokens": 2048, "output": str(output.with_name(f"{output.name}.tokens"))}
    facts["storage"] |= {"chunk_rows": 128, "shard_rows": 1024}
    spec = CollectSpec.model_validate(facts | changes)
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=spec.storage.shard_rows)
    for pending in prepare(spec, table):
        collector = UnitCollector.open(pending.of)
        list(collect_units(collector, pending.units))
        collector.writer.finish()
    return Store.open(spec.output)


@pytest.fixture(scope="module")
def store(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return collected(planted, tmp_path_factory.mktemp("means") / "store")


def spec_of(model: Path, store: str) -> CircuitSpec:
    return CircuitSpec.model_validate({"model": {"path": str(model)}, "store": store, "output": "out"})


def test_means_are_those_of_the_rows(planted: Path, store: Store, network: MaskedNetwork) -> None:
    spec = spec_of(planted, store.url)
    means = read_means(open_store(spec, model_tokenizer(spec)), network.nodes)
    for place in network.nodes.places:
        rows = torch.from_numpy(store.read_values(place.hook, 0, store.num_rows).copy())
        torch.testing.assert_close(means[place.nodes], rows.double().mean(0).float())


def test_a_store_of_another_model_is_refused(store: Store, tmp_path: Path) -> None:
    save_planted(tmp_path / "other", seed=1)
    spec = spec_of(tmp_path / "other", store.url)
    with pytest.raises(MismatchError, match=r"(?s)weights: this job has .*collect a store of this model"):
        open_store(spec, model_tokenizer(spec))


def test_a_store_of_another_tokenizer_is_refused(planted: Path, store: Store) -> None:
    spec = spec_of(planted, store.url)
    own = model_tokenizer(spec)
    other = Tokenizer(own.definition, {**own.specials, "pad": 0})
    with pytest.raises(MismatchError, match="of a tokenizer with digest"):
        open_store(spec, other)


def test_a_location_that_is_missing_is_named(planted: Path, tmp_path: Path) -> None:
    points = [place.hook for place in Nodes(SPEC).places if place.hook != "blocks.1.attn.hook_k"]
    store = collected(planted, tmp_path / "store", hook_points=points)
    with pytest.raises(HookPointError, match=r"means of blocks\.1\.attn\.hook_k are needed, .*did you mean"):
        read_means(store, Nodes(SPEC))


def test_a_location_of_another_width_is_named(store: Store) -> None:
    wider = NetworkSpec.model_validate(SPEC.model_dump() | {"d_mlp": 32})
    with pytest.raises(MismatchError, match=r"blocks\.0\.mlp\.hook_post has 16 channels .* the network has 32"):
        read_means(store, Nodes(wider))
