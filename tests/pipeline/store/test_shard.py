"""Shards: written in one piece, read by chunk, and exactly what zarr-python reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.store.layout import array_metadata
from pipeline.store.shard import Geometry, ShardReader, encode_shard, stored_chunk_crcs
from pipeline.store.sources import Source
from pipeline.store.words import stored_dtype
from schemas.errors import CorruptionError
from schemas.fields import Codec

CODECS: list[Codec] = ["none", "zstd", "bf16", "sparse"]


def words_of(num_rows: int, width: int, dtype: Any = "<u2") -> np.ndarray:
    bits = np.random.default_rng(num_rows * 100 + width).integers(0, 200, (num_rows, width))
    return bits.astype(dtype)


@settings(deadline=None)
@given(data=st.data())
def test_any_rows_come_back(data: st.DataObject) -> None:
    chunk_rows = data.draw(st.integers(1, 6))
    places = data.draw(st.integers(1, 5))
    num_rows = data.draw(st.integers(1, chunk_rows * places))
    dtype = data.draw(st.sampled_from(["<u2", "<f2", "<f4"]))
    codec: Codec = data.draw(st.sampled_from(["none", "zstd", "sparse", *(["bf16"] if dtype == "<u2" else [])]))
    words = words_of(num_rows, data.draw(st.integers(1, 7)), dtype)
    encoded = encode_shard(words, chunk_rows, chunk_rows * places, codec)
    assert encoded == encode_shard(words.copy(), chunk_rows, chunk_rows * places, codec)
    geometry = Geometry(chunk_rows, chunk_rows * places, words.shape[1], words.dtype, codec)
    reader = ShardReader.over(bytes(encoded), geometry, num_rows)
    start = data.draw(st.integers(0, num_rows))
    stop = data.draw(st.integers(start, num_rows))
    np.testing.assert_array_equal(reader.rows(start, stop), words[start:stop])
    rows = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=20)))
    out = np.zeros((len(rows), words.shape[1]), dtype=words.dtype)
    reader.gather(rows, out, np.arange(len(rows)))
    np.testing.assert_array_equal(out, words[rows])


def test_rows_of_one_uncompressed_chunk_are_a_view() -> None:
    words = words_of(20, 3)
    source = np.frombuffer(bytes(encode_shard(words, 8, 32, "none")), dtype=np.uint8)
    rows = ShardReader.over(source, Geometry(8, 32, 3, words.dtype, "none"), 20).rows(9, 15)
    assert np.shares_memory(rows, source)
    assert not rows.flags.writeable


@settings(deadline=None)
@given(position=st.integers(min_value=0), bit=st.integers(0, 7), codec=st.sampled_from(CODECS))
def test_no_flipped_bit_goes_unnoticed(position: int, bit: int, codec: Codec) -> None:
    words = words_of(20, 3)
    geometry = Geometry(8, 32, 3, words.dtype, codec)
    encoded = encode_shard(words, 8, 32, codec)
    encoded[position % len(encoded)] ^= 1 << bit
    with pytest.raises(CorruptionError, match=r"the-key.*expected .*got"):
        ShardReader.over(encoded, geometry, 20, key="the-key").rows(0, 20)


@settings(deadline=None)
@given(size=st.integers(0, 300), codec=st.sampled_from(CODECS))
def test_no_truncation_goes_unnoticed(size: int, codec: Codec) -> None:
    words = words_of(20, 3)
    encoded = encode_shard(words, 8, 32, codec)
    cut = encoded[: size % len(encoded)]
    with pytest.raises(CorruptionError):
        ShardReader.over(cut, Geometry(8, 32, 3, words.dtype, codec), 20).rows(0, 1)


def test_a_sound_shard_in_anothers_place_is_noticed_by_the_ledgers_checksums() -> None:
    ours, theirs = words_of(20, 3), words_of(20, 3) + 1
    geometry = Geometry(8, 32, 3, ours.dtype, "none")
    crcs = stored_chunk_crcs(encode_shard(ours, 8, 32, "none"), geometry, 20)
    other = np.frombuffer(encode_shard(theirs, 8, 32, "none"), dtype=np.uint8)
    reader = ShardReader(Source.over(other, "k"), geometry, 20, chunk_crcs=crcs)
    with pytest.raises(CorruptionError, match="in the ledger"):
        reader.rows(0, 1)


@pytest.mark.parametrize(("num_rows", "chunk_rows", "shard_rows"), [(0, 8, 32), (33, 8, 32), (5, 8, 30)])
def test_rows_that_do_not_fit_are_refused(num_rows: int, chunk_rows: int, shard_rows: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        encode_shard(np.zeros((num_rows, 2), dtype="<u2"), chunk_rows, shard_rows, "none")


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("num_rows", "width"), [(32, 4), (33, 1), (75, 5), (96, 7), (3, 577)])
def test_zarr_reads_the_same_words(
    sample: Any, tmp_path: Path, codec: Codec, dtype: Literal["bfloat16"], num_rows: int, width: int
) -> None:
    hook = "module:model.layers.0:out"
    one = sample(codec=codec, dtype=dtype, num_rows=num_rows, widths={hook: width})
    one.write_all(str(tmp_path))
    group = zarr.open_group(str(tmp_path), mode="r")
    array = group[f"activations/{hook}"]
    assert isinstance(array, zarr.Array)
    assert array.attrs["logical_dtype"] == dtype
    assert (array.shape, array.chunks, array.shards) == ((num_rows, width), (8, width), (32, width))
    np.testing.assert_array_equal(array[:], one.arrays[hook])
    np.testing.assert_array_equal(array[num_rows // 2 : num_rows - 1], one.arrays[hook][num_rows // 2 : -1])
    assert [name for name, _ in group["activations"].arrays()] == [hook]  # type: ignore[union-attr]
    assert group.attrs["headworks"]["fingerprint"] == one.record.fingerprint  # type: ignore[index,call-overload]


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_metadata_is_what_zarr_itself_writes(
    sample: Any, tmp_path: Path, codec: Codec, dtype: Literal["bfloat16"]
) -> None:
    words = stored_dtype(dtype)
    blosc = BloscCodec(typesize=words.itemsize, cname="zstd", clevel=1, shuffle="shuffle")
    theirs = zarr.create_array(
        {}, shape=(75, 5), dtype=words, chunks=(8, 5), shards=(32, 5), fill_value=0, filters=None,
        compressors=[*([blosc] if codec == "zstd" else []), Crc32cCodec()],
    )  # fmt: skip
    facts = array_metadata(sample(codec=codec, dtype=dtype).record, "hook", 5, 75, "pass")
    (tmp_path / "zarr.json").write_text(json.dumps(facts))
    ours = zarr.open_array(str(tmp_path), mode="r")
    assert {**ours.metadata.to_dict(), "attributes": {}} == {**theirs.metadata.to_dict(), "attributes": {}}


def test_what_zarr_writes_decodes_too(tmp_path: Path) -> None:
    """Not by the reader, which insists on its own order of chunks: the index is read by hand."""
    words = words_of(32, 3)
    array = zarr.create_array(
        str(tmp_path),
        shape=(32, 3),
        dtype="uint16",
        chunks=(8, 3),
        shards=(32, 3),
        fill_value=0,
        compressors=[Crc32cCodec()],
    )
    array[:] = words
    theirs = (tmp_path / "c/0/0").read_bytes()
    ours = bytes(encode_shard(words, 8, 32, "none"))
    assert len(theirs) == len(ours)
    index = np.frombuffer(theirs[-68:-4], dtype="<u8").reshape(4, 2)
    chunks = [theirs[offset : offset + length] for offset, length in index.tolist()]
    assert b"".join(chunks) == ours[:-68]
