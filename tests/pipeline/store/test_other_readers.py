"""Stores opened without this package: plain zarr-python, zarrs and TensorStore; pyarrow for the Arrow layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

from pipeline.store.layout import attributes, unit_keys
from pipeline.store.objects import Objects
from pipeline.store.reader import Store

FORMS: list[dict[str, Any]] = [
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"dtype": "float32", "codec": "zstd"},
    {"dtype": "bfloat16", "codec": "zstd"},
    {"dtype": "int8"},
    {"dtype": "float8_e4m3", "codec": "zstd"},
]


def with_zarr(path: Path) -> Any:
    return zarr.open_array(str(path), mode="r")


def with_zarrs(path: Path) -> Any:
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        array = zarr.open_array(str(path), mode="r")
    assert type(array.async_array.codec_pipeline).__module__.startswith("zarrs")
    return array


def with_tensorstore(path: Path) -> Any:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, read=True, open=True).result()


@pytest.mark.parametrize("opened", [with_zarr, with_zarrs, with_tensorstore])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_zarr_readers_give_the_same_words(
    sample: Any, tmp_path: Path, form: dict[str, Any], opened: Callable[[Path], Any]
) -> None:
    one = sample(**form)
    one.write_all(str(tmp_path))
    store = Store.open(str(tmp_path))
    for hook, words in one.expected.items():
        array = opened(tmp_path / "activations" / hook)
        for part in (slice(0, 75), slice(20, 40), slice(70, 75)):
            np.testing.assert_array_equal(np.asarray(array[part]), words[part])
        if one.record.lossy:
            scales = np.asarray(opened(tmp_path / "scales" / hook)[:])
            np.testing.assert_array_equal(scales, store.read_scales(hook, 0, 75))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8", "float8_e4m3"])
@pytest.mark.parametrize(("num_rows", "width"), [(75, 5), (64, 8), (3, 577)])
def test_pyarrow_gives_the_same_words(sample: Any, tmp_path: Path, dtype: str, num_rows: int, width: int) -> None:
    hook = "module:model.layers.0:out"
    one = sample(layout="arrow", dtype=dtype, num_rows=num_rows, widths={hook: width})
    manifest = one.write_all(str(tmp_path))
    store = Store.open(str(tmp_path))
    words, scales = [], []
    for unit in range(manifest.num_units):
        path = str(tmp_path / unit_keys(one.record, hook, unit)[hook])
        before = pa.total_allocated_bytes()
        table = pa.ipc.open_file(pa.memory_map(path)).read_all()
        assert pa.total_allocated_bytes() == before  # mapped, not copied
        assert {key.decode(): value.decode() for key, value in table.schema.metadata.items()} == attributes(
            one.record, hook, manifest.passes[0]
        )
        assert table.schema.field("activations").metadata == {b"logical_dtype": dtype.encode()}
        words += [chunk.to_numpy_ndarray() for chunk in table.column("activations").chunks]
        if one.record.lossy:
            scales += [chunk.to_numpy() for chunk in table.column("scale").chunks]
    assert [len(batch) for batch in words[:-1]] == [8] * (len(words) - 1)
    np.testing.assert_array_equal(np.concatenate(words), one.expected[hook])
    if one.record.lossy:
        np.testing.assert_array_equal(np.concatenate(scales), store.read_scales(hook, 0, num_rows))


def test_an_arrow_store_shows_zarr_readers_no_arrays(sample: Any, tmp_path: Path) -> None:
    """They would take its units for zeros."""
    one = sample(layout="arrow")
    one.write_all(str(tmp_path))
    group = zarr.open_group(str(tmp_path), mode="r")
    for hook in one.arrays:
        assert f"activations/{hook}" not in group
    assert group.attrs["headworks"]["layout"] == "arrow"  # type: ignore[index,call-overload]


def test_rows_of_a_mapped_arrow_file_are_views(sample: Any, tmp_path: Path) -> None:
    one = sample(layout="arrow")
    one.write_all(str(tmp_path))
    store = Store.open(str(tmp_path))
    hook = next(iter(one.arrays))
    rows = store.read_rows(hook, 34, 38)
    assert not rows.flags.writeable
    assert rows.base is not None
    assert np.shares_memory(rows, store.read_rows(hook, 32, 40))


def test_an_arrow_file_is_found_again_by_what_the_document_says(sample: Any, tmp_path: Path) -> None:
    """docs/store-format.md: body of chunk c at ``chunk_offsets[c]``, words, padding to 8 bytes, scales."""
    one = sample(layout="arrow", dtype="int8")
    manifest = one.write_all(str(tmp_path))
    store = Store.open(str(tmp_path))
    for hook, words in one.expected.items():
        receipt = store.entry(manifest.passes[0], 1).objects[hook]
        data = Objects(str(tmp_path)).read(receipt.key)
        for chunk, offset in enumerate(receipt.chunk_offsets):
            size = 8 * words.shape[1]
            body = np.frombuffer(data[offset : offset + size], dtype="i1").reshape(8, -1)
            scales = np.frombuffer(data[offset + -(-size // 8) * 8 :][:32], dtype="<f4")
            first = 32 + 8 * chunk
            np.testing.assert_array_equal(body, words[first : first + 8])
            np.testing.assert_array_equal(scales, store.read_scales(hook, first, first + 8))
