"""One flipped bit anywhere in a document is mended; more than one never turns into another document."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.correction import corrected
from pipeline.store.documents import sealed
from schemas.fields import Spec
from schemas.fingerprint import canonical_json
from schemas.store import LedgerEntry, Manifest, ObjectReceipt, PassRecord, StoreRecord


def documents(sample: Any) -> list[Spec]:
    one = sample()
    receipt = ObjectReceipt(key="k", size_bytes=3, crc32c="0123abcd", chunk_crc32c=["00000000", "ffffffff"])
    entry = LedgerEntry(
        store_fingerprint="f" * 64, pass_id="p", unit=0, start_row=0, num_rows=3, objects={"h": receipt},
        statistics={}, worker="w\u00e9\"{", attempt=1, seconds={"write": 1e-05},
    )  # fmt: skip
    manifest = Manifest(
        fingerprint="f" * 64, num_rows=3, num_units=1, passes=["p"], hook_points={"h": 2}, size_bytes=3,
        ledger_digest="d" * 64, statistics={},
    )  # fmt: skip
    return [one.record, one.pass_record, entry, manifest]


@pytest.mark.parametrize("which", range(4))
def test_every_single_bit_is_mended(sample: Any, which: int) -> None:
    record = documents(sample)[which]
    data = canonical_json(sealed(record))
    assert corrected(data, type(record)) == record
    every = range(8 * len(data))
    # Around the checksum nothing is left out; elsewhere every bit is like its neighbours.
    for place in [*every[:1000], *every[1000::31]]:
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        assert corrected(bytes(damaged), type(record)) == record, place


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_worse_damage_is_never_mended_into_something_else(sample: Any, data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(documents(sample)))
    good = canonical_json(sealed(record))
    damaged = bytearray(good)
    for place in data.draw(st.lists(st.integers(0, 8 * len(good) - 1), min_size=2, max_size=5, unique=True)):
        damaged[place // 8] ^= 1 << place % 8
    cut = data.draw(st.integers(1, len(good)))
    assert corrected(bytes(damaged), type(record)) is None
    assert corrected(good[: cut - 1], type(record)) is None


def test_a_document_of_another_kind_is_none(sample: Any) -> None:
    record, pass_record, *_ = documents(sample)
    assert corrected(canonical_json(sealed(pass_record)), StoreRecord) is None
    assert corrected(canonical_json(sealed(record)), PassRecord) is None
    assert corrected(b"", PassRecord) is None
    assert corrected(b"[]", PassRecord) is None
