"""From a row back to its text, through a real token table made by a real tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.reader import Store
from pipeline.store.writer import StoreWriter
from pipeline.tokens.origins import open_table, origin_of
from pipeline.tokens.table import TokenTable, build_table
from schemas.corpus import TokensSpec
from schemas.errors import MismatchError, MissingError, SpecError
from schemas.fingerprint import fingerprint
from schemas.model import ModelSpec
from schemas.store import PassRecord, Shuffled, StoreRecord

SHARD_ROWS = 64


def write_store(url: str, table: TokenTable, spec: TokensSpec, source_row: Any = None, **facts: Any) -> Store:
    """The table's rows with a number each as activation, or those of ``source_row``."""
    identity = {"table": table.fingerprint, "shuffled": source_row is not None}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint=table.fingerprint, dtype="float32",
        chunk_rows=32, shard_rows=SHARD_ROWS, codec="none", table_url=table.url, specials=table.specials,
        spec={"tokens": spec.model_dump(mode="json")}, versions={}, **facts,
    )  # fmt: skip
    tokens = table.rows(0, table.num_rows)
    if source_row is not None:
        there = tokens.take(source_row)
        tokens = type(tokens)(
            tokens.row, there.token_id, there.document_id, there.position, there.held_out, source_row=source_row
        )
    values = np.arange(len(tokens), dtype=np.float32)[:, None]
    passes = PassRecord(hook_points={"numbers": 1}, batch_tokens=64)
    writer = StoreWriter.open(url, record, passes, num_rows=len(tokens))
    for unit in range(writer.num_units):
        start, stop = writer.unit_rows(unit)
        own = {"numbers": values[start:stop]}
        writer.write_unit(unit, own, tokens.slice(start, stop), worker="test", attempt=0, seconds={})
    writer.finish()
    return Store.open(url)


@pytest.fixture
def spec(text_folder: Path, tokenizer_folder: Path) -> TokensSpec:
    return TokensSpec.model_validate({
        "corpus": {"format": "text", "urls": [f"{text_folder}/**/*.txt"]},
        "tokenizer": str(tokenizer_folder),
        "packing": {"context_length": 24},
        "part_size": "1KiB",
        "output": "unused",
    })  # fmt: skip


@pytest.fixture
def table(spec: TokensSpec, tmp_path: Path) -> TokenTable:
    model = ModelSpec.model_validate({"path": "unused"})
    return build_table(spec, model, url=str(tmp_path / "tokens"), shard_rows=SHARD_ROWS)


@pytest.fixture
def store(table: TokenTable, spec: TokensSpec, tmp_path: Path) -> Store:
    return write_store(str(tmp_path / "store"), table, spec)


def test_every_row_finds_its_text(store: Store, table: TokenTable, text_folder: Path) -> None:
    tokenizer = table.tokenizer()
    rows = store.tokens()
    names = {row["document_id"]: row["name"] for row in table.documents().to_pylist()}
    contexts = rows.row - rows.position
    for row in range(0, len(rows), 13):
        origin = store.origin(row, around=1000)
        mine = rows.take(np.flatnonzero(contexts == contexts[row]))
        assert origin.before + origin.token + origin.after == tokenizer.decode(mine.token_id)
        assert origin.token == tokenizer.decode([rows.token_id[row]])
        assert (origin.token_id, origin.position) == (rows.token_id[row], rows.position[row])
        assert origin.document == names[rows.document_id[row]]
        assert origin.held_out == rows.held_out[row]
        assert origin.corpus == f"text: {text_folder}/**/*.txt"


def test_a_document_found_by_name_says_its_own_text(store: Store, table: TokenTable, text_folder: Path) -> None:
    """There and back: file, document, rows, text."""
    for path in ("01.txt", "below/03.txt", "38.txt"):
        (document,) = [one for one in table.documents().to_pylist() if one["name"] == path]
        assert table.document(document["document_id"]) == document
        rows = store.context(document["document_id"])
        text = [row for row in rows.row if not np.isin(rows.token_id[rows.row == row], [*table.specials.values()])]
        whole = table.tokenizer().decode(store.tokens().token_id[text])
        assert whole == (text_folder / path).read_text()


def test_only_so_much_around(store: Store, table: TokenTable) -> None:
    row = 24 + 10
    origin = store.origin(row, around=3)
    ids = store.tokens().token_id
    assert origin.before == table.tokenizer().decode(ids[row - 3 : row])
    assert origin.after == table.tokenizer().decode(ids[row + 1 : row + 4])
    assert str(origin) == (f"{origin.before}[[{origin.token}]]{origin.after}\n({origin.document}, position 10, row 34)")
    assert store.origin(24, around=0).before == ""


def test_the_page_of_an_origin_is_escaped(store: Store) -> None:
    origin = store.origin(30, decode=lambda ids: "<b>&" * len(ids))
    html = origin._repr_html_()
    assert "<mark>&lt;b&gt;&amp;</mark>" in html
    assert "<b>" not in html


def test_without_its_table_text_needs_a_decoder(store: Store, table: TokenTable, tmp_path: Path) -> None:
    shutil.move(table.url, tmp_path / "moved")
    assert open_table(store) is None
    with pytest.raises(MissingError, match=r"table=URL.*decode=FUNCTION"):
        store.origin(40)
    moved = store.origin(40, table=str(tmp_path / "moved"))
    assert moved.document
    decoded = store.origin(40, decode=TokenTable.open(str(tmp_path / "moved")).tokenizer().decode)
    assert (decoded.before, decoded.token, decoded.after) == (moved.before, moved.token, moved.after)
    assert decoded.document == ""
    assert f"document {decoded.document_id}" in str(decoded)


def test_another_table_is_not_taken(store: Store, spec: TokensSpec, tmp_path: Path) -> None:
    other = spec.model_copy(update={"packing": spec.packing.model_copy(update={"context_length": 20})})
    model = ModelSpec.model_validate({"path": "unused"})
    url = build_table(other, model, url=str(tmp_path / "other"), shard_rows=SHARD_ROWS).url
    with pytest.raises(MismatchError, match="give that one"):
        origin_of(store, 3, table=url)
    with pytest.raises(MissingError):
        origin_of(store, 3, table=str(tmp_path / "nothing"))
    shutil.rmtree(store.record.table_url)
    shutil.move(url, store.record.table_url)
    assert open_table(store) is None


def test_a_shuffled_row_finds_its_text_in_the_table(
    table: TokenTable, spec: TokensSpec, store: Store, tmp_path: Path
) -> None:
    source = np.random.default_rng(0).permutation(table.num_rows)
    shuffled = Shuffled(store_fingerprint="s", store_url=store.url, table_fingerprint=table.fingerprint, seed=0)
    mixed = write_store(str(tmp_path / "mixed"), table, spec, source, shuffled=shuffled)
    for row in (0, 17, 70):
        ours, theirs = mixed.origin(row), store.origin(int(source[row]))
        assert (ours.before, ours.token, ours.after) == (theirs.before, theirs.token, theirs.after)
        assert (ours.document, ours.position) == (theirs.document, theirs.position)
        with pytest.raises(SpecError, match=f"row {row} is row {source[row]} of the store"):
            mixed.context(row=row)
    document = int(mixed.tokens(0, 1).document_id[0])
    np.testing.assert_array_equal(np.sort(mixed.context(document).source_row), store.context(document).row)
    shutil.rmtree(table.url)
    with pytest.raises(SpecError, match="needs the token table"):
        mixed.origin(0, decode=str)


def test_there_is_no_such_document(table: TokenTable) -> None:
    for wrong in (-1, table.num_documents):
        with pytest.raises(IndexError, match="no"):
            table.document(wrong)
