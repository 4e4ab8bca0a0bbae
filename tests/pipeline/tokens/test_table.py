"""The token table: built once, grown without touching old rows, killed and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.tokens.table as table_module
from pipeline.store.rows import TokenRows
from pipeline.tokens.part import PartJob, PartReceipt, is_held_out
from pipeline.tokens.table import TokenTable, build_table, table_identity
from schemas.corpus import JsonLinesCorpus, Packing, TextCorpus, TokensSpec
from schemas.errors import CorpusError, CorruptionError, IncompleteError, MismatchError, MissingError, SpecError
from schemas.fingerprint import fingerprint
from schemas.model import ModelSpec

SHARD_ROWS = 64
NO_MODEL = ModelSpec(path="the tokenizer is named by the spec")


class KilledError(RuntimeError):
    """Stands for the death of the process between two parts."""


class CountingMap:
    """``map`` that records which parts were asked for, and dies before part ``die_at``."""

    def __init__(self, die_at: int = 10**6) -> None:
        self.asked: list[int] = []
        self.die_at = die_at

    def __call__(self, function: Callable[[PartJob], PartReceipt], jobs: Iterable[PartJob]) -> Iterator[PartReceipt]:
        for job in jobs:
            if job.part.index == self.die_at:
                raise KilledError
            self.asked.append(job.part.index)
            yield function(job)


def in_threads(function: Callable[[PartJob], PartReceipt], jobs: Iterable[PartJob]) -> Iterator[PartReceipt]:
    """Everything at once, results in order."""
    with ThreadPoolExecutor(3) as pool:
        yield from pool.map(function, jobs)


@pytest.fixture
def make(text_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> Callable[..., TokenTable]:
    def build(name: str = "table", map_parts: Any = map, shard_rows: int = SHARD_ROWS, **fields: Any) -> TokenTable:
        return build_table(
            spec(text_folder, tokenizer_folder, **fields),
            NO_MODEL,
            url=str(tmp_path / name),
            shard_rows=shard_rows,
            map_parts=map_parts,
        )

    return build


def spec(text_folder: Path, tokenizer_folder: Path, **fields: Any) -> TokensSpec:
    facts: dict[str, Any] = {
        "corpus": TextCorpus(urls=[f"{text_folder}/**/*.txt"]),
        "tokenizer": str(tokenizer_folder),
        "packing": Packing(context_length=24),
        "held_out_fraction": 0.2,
        "part_size": 600,
    }
    return TokensSpec(**(facts | fields))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def whole(table: TokenTable) -> TokenRows:
    return table.rows(0, table.num_rows)


def test_rows_and_documents_have_global_ids(make: Callable[..., TokenTable]) -> None:
    table = make()
    rows, documents = whole(table), table.documents().to_pydict()
    assert rows.row.tolist() == list(range(table.num_rows))
    assert documents["document_id"] == list(range(40))
    assert table.num_documents == 40
    assert set(rows.document_id.tolist()) == set(range(40))
    held_out = np.array(documents["held_out"])
    assert 0 < held_out.sum() < 40
    assert (rows.held_out == held_out[rows.document_id]).all()
    text = ~np.isin(rows.token_id, list(table.specials.values()))
    counts = np.bincount(rows.document_id[text], minlength=40)
    assert counts.tolist() == documents["num_tokens"]


def test_the_text_of_every_document_comes_back(make: Callable[..., TokenTable], text_folder: Path) -> None:
    table = make()
    rows, tokenizer = whole(table), table.tokenizer()
    text = ~np.isin(rows.token_id, list(table.specials.values()))
    for document in table.documents().to_pylist():
        ids = rows.token_id[text & (rows.document_id == document["document_id"])]
        assert tokenizer.decode(ids) == (text_folder / document["name"]).read_text()


def test_held_out_is_a_matter_of_text_and_seed() -> None:
    digests = [f"{i:064x}" for i in range(4000)]
    share = [is_held_out(digest, seed=0, fraction=0.1) for digest in digests]
    assert 0.08 < np.mean(share) < 0.12
    assert share != [is_held_out(digest, seed=1, fraction=0.1) for digest in digests]
    assert not any(is_held_out(digest, seed=0, fraction=0.0) for digest in digests)
    # What is held out at a small fraction is held out at a greater one.
    assert all(is_held_out(d, seed=0, fraction=0.3) for d, out in zip(digests, share, strict=True) if out)


def test_any_range_and_the_contexts_that_cover_it(make: Callable[..., TokenTable]) -> None:
    table = make()
    rows = whole(table)
    begins = [*np.flatnonzero(rows.position == 0).tolist(), len(rows)]
    for start in range(0, table.num_rows, 101):
        for stop in range(start + 1, table.num_rows + 1, 173):
            assert table.rows(start, stop) == rows.slice(start, stop)
            first, last = table.covering(start, stop)
            assert first == max(begin for begin in begins if begin <= start)
            assert last == min(begin for begin in begins if begin >= stop)
    assert len(table.rows(5, 5)) == 0
    assert table.covering(5, 5) == (5, 5)
    with pytest.raises(IndexError):
        table.rows(0, table.num_written_rows + 1)


def test_max_tokens_is_rounded_up_to_whole_shards(make: Callable[..., TokenTable]) -> None:
    counting = CountingMap()
    table = make(map_parts=counting, max_tokens=200)
    assert table.num_rows == 256
    assert table.num_written_rows >= 256
    assert counting.asked == list(range(len(table.receipts)))
    everything = make("everything")
    assert len(everything.receipts) > len(table.receipts)
    assert make("beyond", max_tokens=10**6).num_rows == everything.num_rows
    assert whole(table) == everything.rows(0, 256)
    assert table.fingerprint == everything.fingerprint


def test_covering_reaches_beyond_the_published_rows(make: Callable[..., TokenTable]) -> None:
    table, everything = make(max_tokens=200), make("everything")
    assert table.covering(192, 256) == everything.covering(192, 256)
    first, last = table.covering(192, 256)
    assert last >= 256
    assert table.rows(first, last) == everything.rows(first, last)


def test_a_table_is_used_again_and_grows_by_parts_only(make: Callable[..., TokenTable], tmp_path: Path) -> None:
    make(max_tokens=200)
    before = files(tmp_path / "table")
    again = CountingMap()
    assert make(map_parts=again, max_tokens=200).num_rows == 256
    assert make(map_parts=again, max_tokens=100).num_rows == 128
    assert again.asked == []
    assert files(tmp_path / "table") == before
    grown = CountingMap()
    table = make(map_parts=grown)
    assert min(grown.asked) == len(json.loads(before["table.json"])["parts"])
    after = files(tmp_path / "table")
    assert {name: data for name, data in after.items() if name in before and name != "table.json"} == {
        name: data for name, data in before.items() if name != "table.json" and not name.startswith("growth/")
    }
    assert whole(table) == whole(make("at once"))
    assert make(map_parts=again, max_tokens=100).num_rows == 128
    assert TokenTable.open(table.url).num_rows == table.num_rows


def test_rows_that_are_written_already_are_published_without_work(make: Callable[..., TokenTable]) -> None:
    small = make(max_tokens=10, shard_rows=8)
    counting = CountingMap()
    more = make(max_tokens=small.num_written_rows - 8, shard_rows=8, map_parts=counting)
    assert counting.asked == []
    assert more.num_rows > small.num_rows
    assert TokenTable.open(more.url).num_rows == more.num_rows


def test_a_killed_build_goes_on_and_every_byte_is_the_same(make: Callable[..., TokenTable], tmp_path: Path) -> None:
    make("reference")
    with pytest.raises(KilledError):
        make(map_parts=CountingMap(die_at=3))
    with pytest.raises(IncompleteError, match="begun and not finished"):
        TokenTable.open(str(tmp_path / "table"))
    going_on = CountingMap()
    make(map_parts=going_on)
    assert min(going_on.asked) == 3
    assert files(tmp_path / "table") == files(tmp_path / "reference")


def test_workers_side_by_side_give_the_same_bytes(make: Callable[..., TokenTable], tmp_path: Path) -> None:
    make("one"), make("many", in_threads)
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_a_hole_among_the_parts_is_filled(make: Callable[..., TokenTable], tmp_path: Path) -> None:
    make("reference"), make()
    (tmp_path / "table" / "table.json").unlink()
    (tmp_path / "table" / "parts" / "000001.json").unlink()
    make()
    assert files(tmp_path / "table") == files(tmp_path / "reference")


def test_a_table_of_other_facts_is_refused(make: Callable[..., TokenTable]) -> None:
    make()
    with pytest.raises(MismatchError, match=r"packing\.context_length: this job has 32, .* has 24"):
        make(packing=Packing(context_length=32))


def test_the_identity_ignores_place_and_extent(
    make: Callable[..., TokenTable], text_folder: Path, tokenizer_folder: Path
) -> None:
    table = make()
    same = spec(text_folder, tokenizer_folder, max_tokens=77, output="elsewhere")
    assert fingerprint(table_identity(same, NO_MODEL)) == table.fingerprint
    for change in ({"seed": 1}, {"held_out_fraction": 0.1}, {"part_size": 601}, {"file_order": "sorted"}):
        other = spec(text_folder, tokenizer_folder, **change)
        assert fingerprint(table_identity(other, NO_MODEL)) != table.fingerprint


def test_the_model_brings_its_tokenizer(text_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    named = spec(text_folder, tokenizer_folder)
    model = ModelSpec(path=str(tokenizer_folder))
    assert table_identity(named.model_copy(update={"tokenizer": "model"}), model) == table_identity(named, NO_MODEL)


def test_a_corpus_without_a_token(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    tokens = TokensSpec(corpus=JsonLinesCorpus(urls=[f"{tmp_path}/a.jsonl"]), tokenizer=str(tokenizer_folder))
    with pytest.raises(CorpusError, match="no tokens: 2 documents, all empty"):
        build_table(tokens, NO_MODEL, url=str(tmp_path / "table"), shard_rows=64)


def test_half_a_surrogate_pair_is_no_text(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n{"text": "a\\ud800"}\n')
    tokens = TokensSpec(corpus=JsonLinesCorpus(urls=[f"{tmp_path}/a.jsonl"]), tokenizer=str(tokenizer_folder))
    with pytest.raises(CorpusError, match=r"a\.jsonl@15 holds half of a surrogate pair \(U\+D800\) at character 1"):
        build_table(tokens, NO_MODEL, url=str(tmp_path / "table"), shard_rows=64)


def test_what_was_lost_on_purpose_is_counted(make: Callable[..., TokenTable], text_folder: Path) -> None:
    (text_folder / "bad.txt").write_bytes(b"bad \xff\xff bytes")
    (text_folder / "empty.txt").touch()
    table = make(
        corpus=TextCorpus(urls=[f"{text_folder}/**/*.txt"], on_bad_text="replace"),
        packing=Packing(mode="document", context_length=24, long_documents="truncate"),
    )
    num_tokens = np.array(table.documents().column("num_tokens").to_pylist())
    assert table.counts["num_replaced_bytes"] == 2
    assert table.counts["num_empty_documents"] == 1
    assert table.counts["num_truncated_tokens"] == np.maximum(num_tokens - 23, 0).sum() > 0
    assert table.counts["num_rows"] == table.num_written_rows
    assert table.counts["num_held_out_rows"] == whole(table).held_out.sum()


def test_altered_and_missing_parts_are_refused(make: Callable[..., TokenTable], tmp_path: Path) -> None:
    table = make()
    part = tmp_path / "table" / "parts" / "000001.rows.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert len(table.rows(0, 1)) == 1
    with pytest.raises(CorruptionError, match=r"000001\.rows\.parquet is not what was written"):
        whole(table)
    part.unlink()
    with pytest.raises(MissingError):
        whole(TokenTable.open(table.url))


def test_damaged_and_newer_tables_are_refused(make: Callable[..., TokenTable], tmp_path: Path) -> None:
    url = make().url
    path = tmp_path / "table" / "table.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"format": 2}))
    with pytest.raises(SpecError, match="has format 2"):
        TokenTable.open(url)
    path.write_text("{")
    with pytest.raises(CorruptionError, match="is no token table"):
        TokenTable.open(url)
    with pytest.raises(MissingError, match="there is no token table"):
        TokenTable.open(str(tmp_path / "absent"))


def test_progress_says_rows_so_far(text_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    table = build_table(
        spec(text_folder, tokenizer_folder, max_tokens=200),
        NO_MODEL,
        url=str(tmp_path / "table"),
        shard_rows=SHARD_ROWS,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert heard[-1] == (table.num_rows, 256)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


@pytest.mark.parametrize("point", ["write_facts", "_grown"])
def test_of_two_first_builds_at_once_the_longer_one_stays(
    make: Callable[..., TokenTable], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str
) -> None:
    """The longer build runs from beginning to end while the shorter one is about to publish."""
    step = getattr(table_module, point)
    waiting = [True]

    def overtaken(*arguments: Any) -> Any:
        if waiting:
            waiting.clear()
            make(max_tokens=500)
        return step(*arguments)

    monkeypatch.setattr(table_module, point, overtaken)
    short = make(max_tokens=100)
    assert short.num_rows == 128
    long = TokenTable.open(short.url)
    assert long.num_rows == 512
    alone = make(name="alone", max_tokens=500)
    assert whole(long) == whole(alone)
    assert (tmp_path / "table" / "table.json").read_bytes() == (tmp_path / "alone" / "table.json").read_bytes()
    assert len([*(tmp_path / "table" / "growth").iterdir()]) == 1


def test_tables_live_behind_any_url(text_folder: Path, tokenizer_folder: Path) -> None:
    tokens = spec(text_folder, tokenizer_folder)
    table = build_table(tokens, NO_MODEL, url="memory://token-table-test", shard_rows=SHARD_ROWS)
    assert whole(TokenTable.open("memory://token-table-test")) == whole(table)
