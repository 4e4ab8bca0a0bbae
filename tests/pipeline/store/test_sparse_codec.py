"""The sparse codec: any bits come back, equal words give equal bytes, hostile bytes are refused and never overrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.store import sparse_codec
from pipeline.store.checksums import crc32c_hex
from pipeline.store.sparse_zarr import SparseCodec
from schemas.errors import CorruptionError

PLAIN, SPARSE = 0, 1
TYPES = ["<u2", "<f2", "<f4", "i1", "u1"]


def plain_decode(payload: bytes, num_rows: int, width: int, dtype: str) -> np.ndarray:
    """A second decoder, from docs/store-format.md alone."""
    assert payload[0] == 1
    size = np.dtype(dtype).itemsize
    if payload[1] == PLAIN:
        return np.frombuffer(payload, dtype, offset=2).reshape(num_rows, width)
    words, at = [], 2 + -(-num_rows * width // 8)
    for index in range(num_rows * width):
        if payload[2 + index // 8] >> index % 8 & 1:
            words.append(payload[at : at + size])
            at += size
        else:
            words.append(bytes(size))
    assert at == len(payload)
    return np.frombuffer(b"".join(words), dtype).reshape(num_rows, width)


def bits(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words).view(f"u{words.itemsize}")


def require_round_trip(words: np.ndarray) -> np.ndarray:
    payload = sparse_codec.encode(words)
    assert len(payload) <= words.nbytes + 2
    assert bytes(payload) == bytes(sparse_codec.encode(words.copy(order="F")))
    got = sparse_codec.decode(payload, *words.shape, words.dtype)
    assert (got.dtype, got.shape) == (words.dtype, words.shape)
    assert got.flags.writeable
    np.testing.assert_array_equal(bits(got), bits(words))
    np.testing.assert_array_equal(bits(plain_decode(bytes(payload), *words.shape, words.dtype.str)), bits(words))
    return payload


def neurons(num_rows: int, width: int, share: float, dtype: str = "<u2") -> np.ndarray:
    source = np.random.default_rng(num_rows + width)
    words = source.integers(1, 120, (num_rows, width)).astype(dtype)
    words[source.random((num_rows, width)) >= share] = 0
    return words


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_words_come_back(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(TYPES)))
    shape = data.draw(st.tuples(st.integers(0, 20), st.integers(0, 20)))
    word = st.integers(0, 2 ** (8 * dtype.itemsize) - 1)
    words = data.draw(hnp.arrays(f"u{dtype.itemsize}", shape, elements=st.one_of(st.just(0), word)))
    require_round_trip(words.view(dtype))


@settings(deadline=None, max_examples=60)
@given(
    num_rows=st.integers(1, 60), width=st.integers(1, 60), share=st.floats(0, 1), dtype=st.sampled_from(TYPES)
)  # fmt: skip
def test_neurons_come_back(num_rows: int, width: int, share: float, dtype: str) -> None:
    require_round_trip(neurons(num_rows, width, share, dtype))


def test_every_bit_pattern_comes_back() -> None:
    """NaN payloads, infinities, denormals, and the negative zero, which is no zero here."""
    words = np.zeros((512, 512), dtype="<u2")
    words.reshape(-1)[::4] = np.arange(65536, dtype=np.uint16)
    payload = require_round_trip(words)
    assert payload[1] == SPARSE
    floats = np.array([[0.0, -0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype="<f4")
    assert np.signbit(sparse_codec.decode(sparse_codec.encode(floats), 1, 8, floats.dtype)).tolist() == [
        [False, True] + [False] * 6
    ]


@pytest.mark.parametrize(("dtype", "share"), [("<u2", 1 / 16), ("<f4", 1 / 32), ("i1", 1 / 8)])
def test_a_zero_takes_one_bit_and_any_other_word_one_bit_more(dtype: str, share: float) -> None:
    for density in (0.0, 0.05, 0.5):
        words = neurons(256, 128, density, dtype)
        assert len(require_round_trip(words)) == 2 + words.nbytes * share + np.count_nonzero(words) * words.itemsize


def test_chunks_with_few_zeros_stay_as_they_are() -> None:
    words = neurons(64, 64, 0.95)
    payload = require_round_trip(words)
    assert (payload[1], len(payload)) == (PLAIN, words.nbytes + 2)
    assert require_round_trip(neurons(64, 64, 0.9))[1] == SPARSE


def test_the_bytes_are_those_of_format_1() -> None:
    """Stores are kept for years: a change of these bytes is a new version."""
    rows, channels = np.indices((33, 21))
    words = ((rows * 31 + channels * 7) * ((rows + channels) % 3 == 0)).astype("<u2")
    payload = require_round_trip(words)
    assert (len(payload), crc32c_hex(payload)) == (549, "0735dae6")


@pytest.mark.parametrize("num_rows", [1, 7])
def test_other_bytes_are_refused(num_rows: int) -> None:
    words = neurons(num_rows, 5, 0.3)
    words[0, 0] = 3
    payload = sparse_codec.encode(words)
    assert payload[1] == SPARSE
    last = 1 + -(-num_rows * 5 // 8)
    behind = payload.copy()
    behind[last] |= 0x80  # a bit behind the last word
    for bad, said in (
        (payload[:1], "at least 2"), (payload[:2], "at least"), (payload[:-1], "bytes for"),
        (np.append(payload, np.uint8(0)), "bytes for"), (np.append(np.uint8(2), payload[1:]), "version 1"),
        (np.concatenate([payload[:1], [np.uint8(7)], payload[2:]]), "kind 0 or 1"),
        (np.append(behind, np.zeros(2, np.uint8)), "no bit behind"),
        (np.array([1, 0, 5], np.uint8), "bytes"),
    ):  # fmt: skip
        with pytest.raises(CorruptionError, match=said):
            sparse_codec.decode(bad, num_rows, 5, words.dtype)


@settings(deadline=None, max_examples=200)
@given(payload=st.binary(max_size=60), rows=st.integers(0, 6), width=st.integers(0, 6), dtype=st.sampled_from(TYPES))
def test_hostile_bytes_are_refused_or_give_words(payload: bytes, rows: int, width: int, dtype: str) -> None:
    data = np.frombuffer(bytes([1, 1]) + payload, np.uint8)
    try:
        got = sparse_codec.decode(data, rows, width, np.dtype(dtype))
    except CorruptionError:
        return
    assert got.shape == (rows, width)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int8"])
def test_zarr_finds_the_codec_by_its_name(sample: Any, tmp_path: Path, dtype: str) -> None:
    stored: Any = {"uint16": "bfloat16", "float32": "float32", "int8": "int8"}[dtype]
    one = sample(codec="sparse", dtype=stored)
    one.write_all(str(tmp_path))
    group = zarr.open_group(str(tmp_path), mode="r")
    for hook, rows in one.arrays.items():
        array = group[f"activations/{hook}"]
        assert isinstance(array, zarr.Array)
        assert array.dtype == dtype
        if stored != "int8":
            np.testing.assert_array_equal(array[:], rows)


def test_zarr_writes_what_it_reads() -> None:
    words = neurons(20, 6, 0.2, "<f4").reshape(4, 5, 6)
    how: Any = {"serializer": SparseCodec(), "compressors": None}
    array = zarr.create_array({}, shape=(4, 5, 6), dtype="float32", chunks=(2, 5, 6), **how)
    array[:] = words
    np.testing.assert_array_equal(array[:], words)
    with pytest.raises(ValueError, match="1, 2 or 4 bytes"):
        zarr.create_array({}, shape=(4,), dtype="float64", chunks=(2,), **how)
