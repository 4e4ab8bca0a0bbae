"""Stores of one token table as one: the same rows under longer names, and a refusal that names what differs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.store.joined import JoinedStore, open_any
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.words import to_float32
from schemas.errors import HookPointError, MismatchError, SpecError
from schemas.fingerprint import fingerprint
from schemas.store import StoreRecord

Maker = Callable[..., Any]
HOOK = "blocks.0.hook_mlp_in"


@pytest.fixture
def base(sample: Maker, local_url: str) -> Any:
    one = sample()
    one.write_all(f"{local_url}/base")
    return one


def test_rows_are_those_of_each_store(base: Any, sample: Maker, local_url: str, memory_url: str) -> None:
    """Other widths, chunks, shards, codec, layout and storage; fewer rows, which then are all that there are."""
    tuned = sample(
        facts={"model": "tuned"}, widths={HOOK: 7}, num_rows=64, chunk_rows=4, shard_rows=16, codec="zstd",
    )  # fmt: skip
    tuned.write_all(memory_url)
    joined = pickle.loads(pickle.dumps(JoinedStore.open({"base": f"{local_url}/base", "tuned": memory_url})))
    assert joined.num_rows == 64
    assert joined.hook_points == {f"base/{hook}": width for hook, width in base.pass_record.hook_points.items()} | {
        f"tuned/{HOOK}": 7
    }
    assert joined.dtype == "bfloat16"
    assert not joined.objects.is_local
    np.testing.assert_array_equal(joined.read_rows(f"base/{HOOK}", 3, 60), base.arrays[HOOK][3:60])
    np.testing.assert_array_equal(joined.read_rows(f"tuned/{HOOK}", 3, 60), tuned.arrays[HOOK][3:60])
    rows = np.array([63, 0, 5, 5])
    values = to_float32(tuned.arrays[HOOK], "bfloat16")[rows]
    np.testing.assert_array_equal(joined.gather_values(f"tuned/{HOOK}", rows), values)
    assert joined.tokens() == base.tokens.slice(0, 64)
    assert joined.statistics[f"tuned/{HOOK}"].count == 64
    assert joined.table_fingerprint == base.record.table_fingerprint
    with pytest.raises(SpecError, match="64 rows"):
        joined.read_rows(f"base/{HOOK}", 60, 65)
    with pytest.raises(HookPointError, match=f"did you mean 'tuned/{HOOK}'"):
        joined.read_rows(f"tuned/{HOOK}x", 0, 1)
    assert "64 rows that all have" in joined._repr_html_()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_other_dtypes_are_read_as_values(base: Any, sample: Maker, local_url: str, dtype: str) -> None:
    sample(facts={"model": "b"}, dtype=dtype).write_all(f"{local_url}/b")
    joined = JoinedStore.open([f"{local_url}/base", f"{local_url}/b"])
    assert joined.dtype == "float32"
    for name in ("base", "b"):
        expected = Store.open(f"{local_url}/{name}").read_values(HOOK, 0, 75)
        np.testing.assert_array_equal(joined.read_rows(f"{name}/{HOOK}", 0, 75), expected)


def test_identity_is_of_names_and_stores(base: Any, sample: Maker, local_url: str) -> None:
    sample(facts={"model": "b"}).write_all(f"{local_url}/b")
    sample(facts={"model": "c"}).write_all(f"{local_url}/c")
    one, other, renamed = (
        JoinedStore.open({first: f"{local_url}/base", "second": f"{local_url}/{second}"})
        for first, second in (("first", "b"), ("first", "c"), ("1st", "b"))
    )
    assert len({one.fingerprint, other.fingerprint, renamed.fingerprint}) == 3
    assert one.record.identity["model"] == {"first": "tiny", "second": "b"}
    again = open_any({"first": f"{local_url}/base", "second": f"{local_url}/b"})
    assert again.fingerprint == one.fingerprint
    assert isinstance(open_any(f"{local_url}/base"), Store)


def of_table(one: Any, identity: dict[str, Any], spec: dict[str, Any], table_url: str) -> Any:
    """The sample over another token table."""
    facts = {**one.record.identity, "table": fingerprint(identity)}
    changed: dict[str, Any] = one.record.model_dump() | {
        "identity": facts, "fingerprint": fingerprint(facts), "table_fingerprint": fingerprint(identity),
        "table_url": table_url, "spec": spec,
    }  # fmt: skip
    return type(one)(StoreRecord.model_validate(changed), one.pass_record, one.arrays, one.tokens)


@pytest.mark.parametrize("tables_are_there", [True, False])
def test_other_tables_are_refused_with_the_field(sample: Maker, local_url: str, tables_are_there: bool) -> None:
    """As the tables say themselves, or, when they have gone, as the specs said of them."""
    for name, length in (("a", 128), ("b", 256)):
        identity = {"packing": {"context_length": length}, "seed": 0}
        if tables_are_there:
            Objects(f"{local_url}/table-{name}").write("identity.json", json.dumps(identity).encode())
        spec = {"tokens": {"packing": {"context_length": length}, "max_tokens": length}, "model": {"path": "m"}}
        of_table(sample(), identity, spec, f"{local_url}/table-{name}").write_all(f"{local_url}/{name}")
    with pytest.raises(MismatchError, match=r"packing\.context_length: a has 128, b has 256") as refused:
        JoinedStore.open([f"{local_url}/a", f"{local_url}/b"])
    assert "max_tokens" not in str(refused.value)


def test_names(base: Any, sample: Maker, local_url: str) -> None:
    sample(facts={"model": "b"}).write_all(f"{local_url}/other/base")
    with pytest.raises(SpecError, match="same last part"):
        JoinedStore.open([f"{local_url}/base", f"{local_url}/other/base"])
    with pytest.raises(SpecError, match="expected stores"):
        JoinedStore.open([])
    with pytest.raises(SpecError, match="letters, digits"):
        JoinedStore.open({"a/b": f"{local_url}/base", "c": f"{local_url}/other/base"})
