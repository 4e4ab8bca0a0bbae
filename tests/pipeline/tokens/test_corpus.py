"""Every format gives every document once, in one order, in parts that do not depend on the folder."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.corpus import list_parts, read_documents, survey
from pipeline.tokens.document import CorpusFile, Document, Piece
from pipeline.tokens.json_lines import read_json_lines
from schemas.corpus import HuggingFaceCorpus, JsonLinesCorpus, ParquetCorpus, TextCorpus, TokensSpec
from schemas.errors import CorpusError, MissingError, SpecError

TEXTS = [f"text {i}: " + "word " * (i % 9) for i in range(50)]


def spec(corpus: Any, **fields: Any) -> TokensSpec:
    return TokensSpec(corpus=corpus, **fields)


def documents(tokens: TokensSpec) -> list[Document]:
    return [document for part in list_parts(tokens) for document in read_documents(tokens, part)]


def texts(tokens: TokensSpec) -> list[str]:
    return [document.text for document in documents(tokens)]


def json_lines(lines: list[str]) -> bytes:
    return b"".join(json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(lines))


# text files


def test_text_files_in_name_order_under_relative_names(text_folder: Path) -> None:
    found = documents(spec(TextCorpus(urls=[f"{text_folder}/**/*.txt"]), file_order="sorted"))
    names = sorted(str(path.relative_to(text_folder)) for path in text_folder.rglob("*.txt"))
    assert [document.name for document in found] == names
    assert [document.text for document in found] == [(text_folder / name).read_text() for name in names]


def test_exclude_works_on_names_below_the_fixed_part(text_folder: Path) -> None:
    corpus = TextCorpus(urls=[f"{text_folder}/**/*.txt"], exclude=["below/*", "01.txt"])
    names = {document.name for document in documents(spec(corpus))}
    assert "02.txt" in names
    assert not any(name.startswith("below/") or name == "01.txt" for name in names)
    with pytest.raises(CorpusError, match="leaves none of the 40 files"):
        survey(spec(TextCorpus(urls=[f"{text_folder}/**/*.txt"], exclude=["*"])))


def test_overlapping_urls_give_a_file_once(text_folder: Path) -> None:
    corpus = TextCorpus(urls=[f"{text_folder}/**/*.txt", f"{text_folder}/01.txt", f"{text_folder}/0?.txt"])
    assert len(documents(spec(corpus))) == 40


def test_the_standard_library_has_a_name() -> None:
    corpus = TextCorpus(urls=["{stdlib}/json/*.py"])
    assert {"decoder.py", "encoder.py"} <= {document.name for document in documents(spec(corpus))}


def test_the_shuffled_order_is_another_for_another_seed_only(text_folder: Path) -> None:
    orders = [
        [file.name for file in survey(spec(TextCorpus(urls=[f"{text_folder}/**/*.txt"]), seed=seed)).files]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) != orders[0]


def test_another_folder_is_the_same_corpus_and_other_text_is_not(text_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(text_folder, moved)
    here, there = (survey(spec(TextCorpus(urls=[f"{folder}/**/*.txt"]))) for folder in (text_folder, moved))
    assert here.facts == there.facts
    (moved / "01.txt").write_text("other")
    assert survey(spec(TextCorpus(urls=[f"{moved}/**/*.txt"]))).facts != here.facts


def test_parts_gather_small_files_and_are_picklable(text_folder: Path) -> None:
    tokens = spec(TextCorpus(urls=[f"{text_folder}/**/*.txt"]), part_size=1000)
    parts = list_parts(tokens)
    sizes = [sum(piece.stop - piece.start for piece in part.pieces) for part in parts]
    assert all(1000 <= size < 1400 for size in sizes[:-1])
    assert [part.index for part in parts] == list(range(len(parts)))
    assert pickle.loads(pickle.dumps(parts)) == parts


def test_fsspec_urls(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus-test/a/one.txt", b"one")
    memory.pipe("/corpus-test/two.txt", b"two")
    found = documents(spec(TextCorpus(urls=["memory://corpus-test/**/*.txt"]), file_order="sorted"))
    assert [(document.name, document.text) for document in found] == [("a/one.txt", "one"), ("two.txt", "two")]
    memory.rm("/corpus-test", recursive=True)


def test_a_glob_without_match_names_pattern_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=rf"'{tmp_path}/\*.txt' matches no file; searched {tmp_path}$"):
        survey(spec(TextCorpus(urls=[f"{tmp_path}/*.txt"])))
    with pytest.raises(MissingError, match=r"searched .*absent, which does not exist"):
        survey(spec(TextCorpus(urls=[f"{tmp_path}/absent/*.txt"])))
    with pytest.raises(CorpusError, match="is a folder"):
        survey(spec(TextCorpus(urls=[str(tmp_path)])))


def test_bad_text_is_refused_with_file_and_byte(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good \xff\xfe text")
    with pytest.raises(CorpusError, match=r"bad\.txt is not utf-8: byte 5 is 0xff .*on_bad_text: replace"):
        documents(spec(TextCorpus(urls=[f"{tmp_path}/*.txt"])))


def test_bad_text_is_replaced_byte_for_byte_and_counted(tmp_path: Path) -> None:
    # A cut-off three-byte character is two bad bytes; U+FFFD that was there before is none.
    (tmp_path / "bad.txt").write_bytes(b"a\xff" + "\ufffd".encode() + b"\xe6\x97 b")
    [document] = documents(spec(TextCorpus(urls=[f"{tmp_path}/*.txt"], on_bad_text="replace")))
    assert document.text == "a\ufffd\ufffd\ufffd\ufffd b"
    assert document.num_replaced == 3


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    assert texts(spec(TextCorpus(urls=[f"{tmp_path}/a.txt"], encoding="latin-1"))) == ["caf\u00e9"]
    with pytest.raises(SpecError, match="no text encoding"):
        texts(spec(TextCorpus(urls=[f"{tmp_path}/a.txt"], encoding="klingon")))


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    tokens = spec(TextCorpus(urls=[str(path)]))
    path.write_text("before")
    [part] = list_parts(tokens)
    for changed in ("longer than before", "afterX"):
        path.write_text(changed)
        with pytest.raises(CorpusError, match="changed while the job ran"):
            list(read_documents(tokens, part))
    path.unlink()
    with pytest.raises(MissingError, match="not there any more"):
        list(read_documents(tokens, part))


def test_only_empty_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(CorpusError, match="are empty"):
        survey(spec(TextCorpus(urls=[f"{tmp_path}/*.txt"])))


# JSON lines


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("part_size", [64, 700, 10**6])
def test_json_lines_plain_and_compressed(tmp_path: Path, ending: str, part_size: int) -> None:
    content = json_lines(TEXTS)
    offsets = [0]
    for line in content.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    (tmp_path / f"a.jsonl{ending}").write_bytes(pack(content))
    tokens = spec(JsonLinesCorpus(urls=[f"{tmp_path}/*"]), part_size=part_size)
    found = documents(tokens)
    assert [document.text for document in found] == TEXTS
    assert [document.name for document in found] == [f"a.jsonl{ending}@{offset}" for offset in offsets[:-1]]
    assert len(list_parts(tokens)) == -(-len(content) // part_size)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=12), st.integers(1, 200), st.booleans())
def test_any_cut_gives_each_line_once(tmp_path_factory: Any, lines: list[str], cut: int, ended: bool) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    content = json_lines(lines) if ended else json_lines(lines).rstrip(b"\n")
    path.write_bytes(content)
    file = CorpusFile("a.jsonl", str(path), len(content))
    pieces = [Piece(file, start, min(start + cut, len(content))) for start in range(0, len(content), cut)]
    corpus = JsonLinesCorpus(urls=[str(path)])
    assert [d.text for piece in pieces for d in read_json_lines(corpus, piece)] == lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", "line 3 is not JSON"),
        (b"[1]", "line 3 is a JSON list"),
        (b'{"body": "x"}', r"line 3 has no field 'text'; its fields are \['body'\]"),
        (b'{"text": 3}', "line 3: field 'text' is int"),
        (b'{"text": "\xff"}', "line 3 is not UTF-8"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_bad_lines_are_named(tmp_path: Path, line: bytes, message: str, ending: str) -> None:
    content = json_lines(TEXTS[:2]) + line + b"\n"
    (tmp_path / f"a.jsonl{ending}").write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(CorpusError, match=message):
        documents(spec(JsonLinesCorpus(urls=[f"{tmp_path}/*"]), part_size=16))


def test_blank_lines_null_and_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": null}\n{"text": "b"}')
    assert texts(spec(JsonLinesCorpus(urls=[f"{tmp_path}/*"]))) == ["a", "", "b"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_damaged_compression(tmp_path: Path, ending: str) -> None:
    whole = gzip.compress(json_lines(TEXTS)) if ending == ".gz" else b"no zstandard frame"
    (tmp_path / f"a.jsonl{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match="does not decompress"):
        documents(spec(JsonLinesCorpus(urls=[f"{tmp_path}/*"])))


# Parquet


@pytest.mark.parametrize("part_size", [200, 10**6])
def test_parquet_by_row_groups(tmp_path: Path, part_size: int) -> None:
    table = pa.table({"n": list(range(50)), "text": [*TEXTS[:49], None]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    tokens = spec(ParquetCorpus(urls=[f"{tmp_path}/*.parquet"]), part_size=part_size)
    found = documents(tokens)
    assert [document.text for document in found] == [*TEXTS[:49], ""]
    assert [document.name for document in found] == [f"a.parquet@{row}" for row in range(50)]
    assert (len(list_parts(tokens)) > 1) == (part_size == 200)


def test_parquet_without_such_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"no column 'text'; its columns are \['n', 'body'\]"):
        documents(spec(ParquetCorpus(urls=[f"{tmp_path}/*"])))
    with pytest.raises(CorpusError, match="column 'n' is int64, expected string"):
        documents(spec(ParquetCorpus(urls=[f"{tmp_path}/*"], text_field="n")))
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(CorpusError, match="cannot be read as Parquet"):
        documents(spec(ParquetCorpus(urls=[f"{tmp_path}/*"])))


# Hugging Face datasets


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    pytest.importorskip("datasets")
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(json_lines(TEXTS))
    return folder


def test_a_local_dataset_in_ranges(dataset_folder: Path) -> None:
    tokens = spec(HuggingFaceCorpus(path=str(dataset_folder), documents_per_part=20))
    parts = list_parts(tokens)
    assert [(part.pieces[0].start, part.pieces[0].stop) for part in parts] == [(0, 20), (20, 40), (40, 50)]
    found = [document for part in reversed(parts) for document in read_documents(tokens, part)]
    assert Counter(document.text for document in found) == Counter(TEXTS)
    assert texts(tokens) == TEXTS
    assert found[-1].name == "train@19"
    (dataset_folder / "train.jsonl").write_bytes(json_lines(TEXTS[1:]))
    assert survey(tokens).facts != survey(spec(HuggingFaceCorpus(path=str(dataset_folder), split="test"))).facts


def test_a_dataset_without_such_split_or_column(dataset_folder: Path) -> None:
    with pytest.raises(CorpusError, match="Bad split"):
        documents(spec(HuggingFaceCorpus(path=str(dataset_folder), split="nowhere")))
    with pytest.raises(CorpusError, match=r"no column 'body'; its columns are \['id', 'text'\]"):
        documents(spec(HuggingFaceCorpus(path=str(dataset_folder), text_field="body")))
    with pytest.raises(CorpusError, match="column 'id' is int"):
        documents(spec(HuggingFaceCorpus(path=str(dataset_folder), text_field="id")))


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(SpecError, match=r"headworks\[hf\]"):
        documents(spec(HuggingFaceCorpus(path=str(tmp_path))))
