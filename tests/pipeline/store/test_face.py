"""What a notebook sees of a store: indexing as numpy does it, rows by what they are, and a safe page."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.store.reader import Store
from pipeline.store.rounding import dequantise, row_scales
from pipeline.store.words import to_float32
from schemas.errors import HookPointError, IncompleteError, SpecError

HOOK = "blocks.0.hook_mlp_in"
KINDS = {
    "zarr": {},
    "arrow": {"layout": "arrow"},
    "zstd": {"codec": "zstd"},
    "float16": {"dtype": "float16"},
    "float32": {"dtype": "float32", "layout": "arrow"},
    "int8": {"dtype": "int8"},
    "float8": {"dtype": "float8_e4m3", "layout": "arrow"},
}


def values_of(sample: Any) -> np.ndarray[Any, Any]:
    """[75, 5] float32 as a reader should see them."""
    dtype = sample.record.dtype
    if sample.record.lossy:
        return dequantise(sample.expected[HOOK], row_scales(sample.arrays[HOOK], dtype), dtype)
    return to_float32(sample.expected[HOOK], dtype)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, sample: Callable[..., Any]) -> tuple[Any, str]:
    """The sample and the URL of its store."""
    url = str(tmp_path_factory.mktemp("face") / "store")
    one = sample()
    one.write_all(url)
    return one, url


@pytest.fixture
def store(kept: tuple[Any, str]) -> Store:
    return Store.open(kept[1])


@pytest.mark.parametrize("kind", KINDS)
def test_indexing_is_numpys(sample: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    one = sample(**KINDS[kind])
    one.write_all(str(tmp_path / "store"))
    array = Store.open(str(tmp_path / "store"))[HOOK]
    for got, expected in ((array, values_of(one)), (array.words, one.expected[HOOK])):
        assert (got.shape, got.ndim, len(got), got.dtype) == (expected.shape, 2, 75, expected.dtype)
        for index in (
            slice(3, 6), slice(5, 70), slice(None), slice(None, None, 7), slice(60, 2, -3), slice(-5, None),
            slice(9, 3), ([2, 9], slice(None)), (np.arange(75) % 5 == 0, [0] * 15),
            [4, 70, 4, -1], np.array([33, 2], np.int32), np.arange(75) % 3 == 0, [], 0, -1, np.int64(74),
            (slice(2, 30), slice(1, 3)), (5, 2), ([1, 50], [0, 4]), (slice(0, 40, 9), ...),
        ):  # fmt: skip
            np.testing.assert_array_equal(got[index], expected[index], err_msg=f"{kind} {index}")
        np.testing.assert_array_equal(np.asarray(got), expected)
        np.testing.assert_array_equal(np.stack([*got]), expected)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.slices(75), st.lists(st.integers(-75, 74), max_size=20))
def test_any_slice_and_any_list(kept: tuple[Any, str], store: Store, span: slice, rows: list[int]) -> None:
    expected = values_of(kept[0])
    np.testing.assert_array_equal(store[HOOK][span], expected[span])
    np.testing.assert_array_equal(store[HOOK][rows], expected[np.array(rows, np.int64)])


@pytest.mark.parametrize(
    "index", [75, -76, [0, 75], [-76], np.zeros(74, bool), np.zeros((2, 2), int), 1.5, [0.5], "a", (0, 0, 0), None]
)
def test_what_is_no_index_is_refused(store: Store, index: Any) -> None:
    with pytest.raises(IndexError):
        store[HOOK][index]


def test_a_store_is_a_mapping_of_hook_points_with_rows(kept: tuple[Any, str], store: Store) -> None:
    assert list(store) == list(kept[0].arrays)
    assert HOOK in store
    assert "else" not in store
    assert len(store) == 75
    assert repr(store) == (f"<Store {kept[1]}: 75 rows, bfloat16, zarr; {HOOK} [5], module:model.layers.0:out [3]>")
    assert repr(store[HOOK]) == f"<{HOOK}: 75 rows x 5, bfloat16, read as float32 values>"
    with pytest.raises(HookPointError, match="did you mean"):
        store["blocks.0.hook_mlp_im"]


def test_rows_by_id(kept: tuple[Any, str], store: Store) -> None:
    np.testing.assert_array_equal(store.rows(HOOK, [74, 0, 33, 0]), values_of(kept[0])[[74, 0, 33, 0]])
    with pytest.raises(SpecError, match="not within the 75 rows"):
        store.rows(HOOK, [75])


def test_rows_of_a_document(kept: tuple[Any, str], store: Store) -> None:
    """Documents of 20 rows in units of 32: the second lies in two."""
    tokens = kept[0].tokens
    for document in range(4):
        assert store.context(document) == tokens.take(np.flatnonzero(tokens.document_id == document))
    for nowhere in (-1, 4):
        with pytest.raises(SpecError, match=f"no row .* of document {nowhere}"):
            store.context(nowhere)


def test_the_context_of_a_row(kept: tuple[Any, str], store: Store) -> None:
    """Contexts of 10 rows; the one at 30 goes over into the next unit, the last is short."""
    for row, (start, stop) in {0: (0, 10), 9: (0, 10), 30: (30, 40), 39: (30, 40), 31: (30, 40), 74: (70, 75)}.items():
        assert store.context(row=row) == kept[0].tokens.slice(start, stop)
    with pytest.raises(SpecError):
        store.context(row=75)
    for wrong in ({}, {"document": 1, "row": 1}):
        with pytest.raises(SpecError, match="ask for the rows of a document or for the context of a row"):
            store.context(**wrong)


def test_rows_of_a_token(kept: tuple[Any, str], store: Store) -> None:
    expected = np.flatnonzero(kept[0].tokens.token_id == 7)
    assert len(expected) > 1
    np.testing.assert_array_equal(store.find_token(7), expected)
    np.testing.assert_array_equal(store.find_token(7, limit=1), expected[:1])
    assert store.find_token(999).tolist() == store.find_token(7, limit=0).tolist() == []


def test_documents_are_found_by_the_footers(kept: tuple[Any, str], store: Store, monkeypatch: Any) -> None:
    read = []
    original = Store.tokens

    def spy(self: Store, start: int = 0, stop: int | None = None) -> Any:
        read.append(start)
        return original(self, start, stop)

    monkeypatch.setattr(Store, "tokens", spy)
    store.context(3)
    assert read == [32, 64]


def test_a_store_that_is_not_complete_shows_itself(sample: Callable[..., Any], tmp_path: Path) -> None:
    one = sample()
    one.write(one.open(str(tmp_path / "store")), [0])
    store = Store.open(str(tmp_path / "store"), allow_partial=True)
    assert "not complete" in repr(store)
    assert "not complete" in store._repr_html_()
    np.testing.assert_array_equal(store[HOOK][:32], values_of(one)[:32])
    with pytest.raises(IncompleteError):
        store[HOOK][:33]


def test_the_page_tells_what_the_store_is(sample: Callable[..., Any], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    one = sample(facts={"model": {"path": evil, "revision": "abc123", "dtype": "float32"}})
    corpus = {"format": "text", "urls": [f"/data/{evil}*.txt", "/more/&.txt"]}
    versions = {"headworks": "1.2.3", "torch": f"2.0{evil}"}
    record = one.record.model_copy(update={"spec": {"tokens": {"corpus": corpus}}, "versions": versions})
    one = type(one)(record, one.pass_record, one.arrays, one.tokens)
    one.write_all(str(tmp_path / "a<b"))
    html = Store.open(str(tmp_path / "a<b"))._repr_html_()
    for said in (
        "75 in 3 units of 32",
        "bfloat16",
        "layout zarr",
        HOOK,
        "abc123",
        "headworks 1.2.3",
        "/more/&amp;.txt",
    ):
        assert said in html
    assert re.search(r"collection begun.*20\d\d-\d\d-\d\d \d\d:\d\d UTC", html)
    assert "&lt;script&gt;" in html
    tags = set(re.findall(r"<(/?[a-z]+)", html))
    assert tags <= {f"{end}{tag}" for tag in ("div", "p", "b", "code", "table", "tr", "td", "th") for end in ("", "/")}
    assert not re.search(r"(src|href|url\()", html)


def test_a_notebook_needs_neither_torch_nor_ray(kept: tuple[Any, str]) -> None:
    code = (
        "import sys, headworks\n"
        f"store = headworks.open_store({kept[1]!r})\n"
        f"store[{HOOK!r}][3:50], store.context(1), store._repr_html_(), repr(store)\n"
        "next(store.iter_batches()); store.record_batches().read_all()\n"
        "print(sorted({'torch', 'ray', 'transformers', 'zarr', 'numba'} & set(sys.modules)))\n"
        "from schemas.train import RowOrder\n"
        "next(store.iter_shuffled(order=RowOrder()))\n"
        "print(sorted({'torch', 'ray', 'transformers', 'zarr'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n[]\n"
