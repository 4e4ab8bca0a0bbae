"""The corpus: reads the spec, yields parts, and documents for a part.

1. ``survey``: find the files, digest them, put them in order. Says what the corpus is; opens no document.
2. ``iter_parts``: cut big files into pieces, gather small ones, about ``part_size`` bytes of text in each part. Lazy:
   a file is looked into only when its parts are asked for.
3. ``read_documents``: stream the documents of a part, in order.

Which text is in which part depends on the spec and the files alone, never on folders, workers or ``max_tokens``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.tokens.document import CorpusFile, CorpusPart, Document, Piece
from pipeline.tokens.files import digest_files, find_files, order_files
from pipeline.tokens.generated import generated_file, generated_ranges, read_generated
from pipeline.tokens.huggingface import dataset_file, document_ranges, read_dataset
from pipeline.tokens.images import image_groups, read_images
from pipeline.tokens.json_lines import json_lines_size, read_json_lines
from pipeline.tokens.parquet_rows import read_parquet, row_group_sizes
from pipeline.tokens.text_files import read_text
from schemas.corpus import HuggingFaceCorpus, ImagesCorpus, JsonLinesCorpus, ParquetCorpus, TextCorpus, TokensSpec
from schemas.errors import CorpusError
from schemas.fingerprint import canonical_json
from schemas.grammar import GrammarCorpus

_NOT_IDENTITY = {
    "text": {"urls", "exclude"},
    "jsonl": {"urls"},
    "parquet": {"urls"},
    "huggingface": {"path", "revision"},
    "images": {"urls"},
    "grammar": set(),
}
"""Fields that only say where the text is; the digests say what it is."""


@dataclass(frozen=True)
class CorpusSurvey:
    """What the corpus is: its files in the order of the table, and the facts that its identity is made of."""

    files: tuple[CorpusFile, ...]
    facts: dict[str, Any]


def survey(spec: TokensSpec) -> CorpusSurvey:
    """Find, digest and order the files. Local files are read through once.

    Raises:
        MissingError: a URL that matches nothing.
        CorpusError: only empty files.
    """
    corpus = spec.corpus
    if isinstance(corpus, HuggingFaceCorpus):
        files = [dataset_file(corpus)]
    elif isinstance(corpus, GrammarCorpus):
        files = [generated_file(corpus)]
    else:
        found = find_files(corpus.urls, corpus.exclude if isinstance(corpus, TextCorpus) else ())
        if not any(file.size_bytes for file in found):
            raise CorpusError(f"all {len(found)} files of the corpus {list(corpus.urls)} are empty")
        files = order_files(digest_files(found), spec.file_order, spec.seed)
    content = canonical_json([[_portable(file.name), file.digest] for file in files])
    facts = corpus.model_dump(mode="json", exclude=_NOT_IDENTITY[corpus.format])
    facts |= {"num_files": len(files), "content_sha256": hashlib.sha256(content).hexdigest()}
    return CorpusSurvey(tuple(files), facts)


def list_parts(spec: TokensSpec) -> list[CorpusPart]:
    """All parts of the corpus, in the order of the table."""
    return list(iter_parts(spec, survey(spec)))


def iter_parts(spec: TokensSpec, surveyed: CorpusSurvey) -> Iterator[CorpusPart]:
    """Gather pieces until a part has at least ``part_size`` bytes of text (``documents_per_part`` documents)."""
    pieces: list[Piece] = []
    size_bytes = index = 0
    for piece, weight in _pieces(spec, surveyed):
        pieces.append(piece)
        size_bytes += weight
        if size_bytes >= spec.part_size:
            yield CorpusPart(index, tuple(pieces))
            pieces, size_bytes, index = [], 0, index + 1
    if pieces:
        yield CorpusPart(index, tuple(pieces))


def read_documents(spec: TokensSpec, part: CorpusPart) -> Iterator[Document]:
    """The documents of a part, in order; one document (text format: one file) is in memory at a time.

    Raises:
        CorpusError: text that cannot be read as the spec says, naming the file and the place.
    """
    corpus = spec.corpus
    for piece in part.pieces:
        documents: Iterator[Document]
        if isinstance(corpus, TextCorpus):
            documents = read_text(corpus, piece)
        elif isinstance(corpus, JsonLinesCorpus):
            documents = read_json_lines(corpus, piece)
        elif isinstance(corpus, ParquetCorpus):
            documents = read_parquet(corpus, piece)
        elif isinstance(corpus, ImagesCorpus):
            documents = read_images(corpus, piece)
        elif isinstance(corpus, GrammarCorpus):
            documents = read_generated(corpus, piece)
        else:
            documents = read_dataset(corpus, piece)
        for document in documents:
            yield replace(document, name=_portable(document.name))


def _pieces(spec: TokensSpec, surveyed: CorpusSurvey) -> Iterator[tuple[Piece, int]]:
    """Pieces of at most about ``part_size`` bytes, with their weight in bytes of text."""
    corpus = spec.corpus
    for file in surveyed.files:
        if isinstance(corpus, TextCorpus):
            yield Piece(file, 0, file.size_bytes), file.size_bytes
        elif isinstance(corpus, JsonLinesCorpus):
            size_bytes = json_lines_size(file)
            for start in range(0, size_bytes, spec.part_size):
                stop = min(start + spec.part_size, size_bytes)
                yield Piece(file, start, stop), stop - start
        elif isinstance(corpus, ParquetCorpus):
            for group, weight in enumerate(row_group_sizes(corpus, file)):
                yield Piece(file, group, group + 1), weight
        elif isinstance(corpus, ImagesCorpus):
            for start, stop, weight in image_groups(corpus, file):
                yield Piece(file, start, stop), weight
        else:
            ranges = generated_ranges(corpus) if isinstance(corpus, GrammarCorpus) else document_ranges(corpus)
            for start, stop in ranges:
                yield Piece(file, start, stop), spec.part_size


def _portable(name: str) -> str:
    """File names that are not UTF-8 get U+FFFD: names are written to JSON and Parquet."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
